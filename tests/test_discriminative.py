"""MWER and sMBR against sums over all texts and all paths; what they leave alone; what they fit, and on which rows."""

import itertools

import numpy as np
import polars
import pytest
import torch
from conftest import TINY, change, poisoned
from small_runs import small

import seqformer
from seqformer.errors import InputError
from seqformer.heads.ctc import CTC, aligned, nll_of
from seqformer.heads.framewise import Framewise
from seqformer.heads.transducer import Transducer
from seqformer.model import create_model
from seqformer.nn.mask import mask_of
from seqformer.nn.mwer import expected_errors, word_errors
from seqformer.nn.smbr import NEVER, Bigram, Graph, expected_gain, wrong_frames
from seqformer.predict import TrainedRun
from seqformer.train.crossval import train_run

torch.set_num_threads(1)

LENGTHS = (5, 1, 0, 3)
MASK = mask_of(torch.tensor(LENGTHS), 5)


def random_graph(states: int, seed: int = 0) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((states,), (states, states), (states,))
    return Graph(*(2 * torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes))


def random_scores(*shape: int, seed: int = 1) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(scores: torch.Tensor, gain: torch.Tensor, graph: Graph) -> torch.Tensor:
    """Expected gain of one item (T, S), every path by itself."""
    frames, states = scores.shape
    if not frames:
        return scores.sum()
    log_p, gained = [], []
    for path in itertools.product(range(states), repeat=frames):
        log_p.append(graph.start[path[0]] + graph.end[path[-1]] + sum(scores[t, s] for t, s in enumerate(path)))
        log_p[-1] = log_p[-1] + sum(graph.step[pair] for pair in itertools.pairwise(path))
        gained.append(sum(gain[t, s] for t, s in enumerate(path)))
    return (torch.stack(log_p).softmax(dim=0) * torch.stack(gained)).sum()


@pytest.mark.parametrize("states", [1, 2, 3])
def test_expected_gain_is_that_of_all_paths(states):
    graph, factors = random_graph(states), random_scores(len(LENGTHS), seed=3)
    scores, gain = random_scores(4, 5, states).requires_grad_(), random_scores(4, 5, states, seed=2)
    padded = scores.masked_fill(~MASK[..., None], float("nan"))
    found = expected_gain(padded, gain.masked_fill(~MASK[..., None], 1e38), MASK, graph)
    wanted = [brute_force(scores[item, :length], gain[item, :length], graph) for item, length in enumerate(LENGTHS)]
    wanted = torch.stack(wanted)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    ours, theirs = (torch.autograd.grad((side * factors).sum(), scores)[0] for side in (found, wanted))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda scores: expected_gain(scores, gain, MASK, graph), scores)


def test_states_that_nothing_leads_to_are_no_nan():
    graph = random_graph(3)
    graph.start[1:], graph.step[:, 2], graph.step[2] = NEVER, NEVER, NEVER
    scores, gain = random_scores(1, 4, 3).requires_grad_(), random_scores(1, 4, 3, seed=2)
    found = expected_gain(scores, gain, MASK[:1, :4], graph)
    assert torch.allclose(found, brute_force(scores[0], gain[0], graph)[None], rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad(found.sum(), scores)
    assert slope.isfinite().all() and not slope[..., 2].any()


def test_float32_is_enough_for_many_frames():
    """Errors do not add up, nor do large scores: 300 frames of a sure model that is at times surely wrong."""
    graph, mask = Bigram(6).graph(), torch.ones(2, 300, dtype=torch.bool)
    scores = (10 * random_scores(2, 300, 6)).log_softmax(dim=-1)
    gain = torch.nn.functional.one_hot(torch.arange(600).reshape(2, 300) // 7 % 6, 6).double()
    graph = Graph(graph.start, graph.step + random_graph(6).step, graph.end)
    exact, rough = scores.clone().requires_grad_(), scores.float().requires_grad_()
    found = expected_gain(rough, gain.float(), mask, graph)
    wanted = expected_gain(exact, gain, mask, graph)
    assert torch.allclose(found.double(), wanted, rtol=1e-5)
    found.sum().backward()
    wanted.sum().backward()
    assert torch.allclose(rough.grad.double(), exact.grad, rtol=0, atol=1e-5)


def test_autocast_leaves_the_graph_alone():
    graph, scores, mask = Bigram(4).graph(), random_scores(2, 5, 4).float(), MASK[:2]
    with torch.autocast("cpu", torch.bfloat16):
        found = expected_gain(scores, scores, mask, graph)
    assert torch.equal(found, expected_gain(scores, scores, mask, graph))


def test_without_a_bigram_frames_are_on_their_own():
    """Nothing is known of what follows what: a frame is wrong with 1 - p(class), whatever its neighbours."""
    logits, targets = random_scores(4, 5, 3).float(), torch.randint(-1, 3, (4, 5), generator=torch.Generator())
    weight, log_p = torch.rand(4, 5, generator=torch.Generator()), logits.log_softmax(dim=-1)
    share = weight * (MASK & (targets >= 0))
    p = log_p.exp().gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    found = wrong_frames(log_p, targets, MASK, Bigram(3).graph(), weight)
    assert found == pytest.approx(float(((1 - p) * share).sum() / share.sum()), rel=1e-5)
    shares = torch.nn.functional.one_hot(targets.clamp(min=0), 3).float()
    shares[targets < 0] = float("nan")
    assert wrong_frames(log_p, shares, MASK, Bigram(3).graph(), weight) == found
    assert wrong_frames(log_p, torch.full((4, 5), -1), MASK, Bigram(3).graph()) == 0


def test_a_bigram_is_counted():
    sequences, vocab = [[1, 1, 2], [2], [], [0, -1, 1]], 3
    bigram = Bigram(vocab)
    assert torch.allclose(bigram.table.exp().sum(dim=1), torch.ones(4))
    bigram.fit(map(np.array, sequences))
    counts = np.zeros((4, 4))
    for row, column in [(3, 1), (1, 1), (1, 2), (2, 3), (3, 2), (2, 3), (3, 3), (3, 0), (1, 3)]:
        counts[row, column] += 1
    seen = counts.sum(axis=0) + 1
    table = (counts + seen / seen.sum()) / (counts.sum(axis=1, keepdims=True) + 1)
    assert np.allclose(bigram.table.exp(), table, atol=1e-6)
    assert np.allclose(bigram.shares.exp(), seen[:3] / seen[:3].sum(), atol=1e-6)
    assert not bigram.state_dict()
    again = Bigram(vocab)
    soft = [np.eye(vocab)[np.maximum(one, 0)] + 0.2 for one in map(np.array, sequences[:2] + sequences[3:])]
    soft[2][1] = np.nan
    again.fit([*soft, np.empty((0, vocab))])
    assert torch.equal(again.table, bigram.table)


def collapsed(path: tuple[int, ...]) -> list[int]:
    return [unit for unit, _ in itertools.groupby(path) if unit]


def ctc_head(criterion: str, vocab: int = 3, **keywords) -> tuple[CTC, torch.Tensor]:
    """A head in training, its units counted on a few texts, and frames x whose logits are all but even."""
    torch.manual_seed(0)
    head = CTC(4, vocab, criterion=criterion, **keywords)
    head.linear.weight.data *= 3
    if criterion == "smbr":
        head.fit(map(np.array, [[1, 2, 2], [2], [2, 1], []]))
    return head, torch.randn(4, 5, 4, generator=torch.Generator().manual_seed(4))


def test_smbr_of_ctc_is_that_of_all_paths():
    """Every sequence of frame units is a path; its text costs what the bigram says."""
    head, x = ctc_head("smbr", likelihood=0.0, scale=0.7)
    texts = torch.tensor([[1, 1], [2, -1], [-1, -1], [-1, -1]])
    wanted = torch.zeros(4, dtype=torch.float64)
    table = head.bigram.table.double()
    for item, length in enumerate(LENGTHS):
        log_p = head.linear(x[item, :length]).double().log_softmax(dim=-1)
        target = [unit for unit in texts[item].tolist() if unit >= 0]
        paths = list(itertools.product(range(3), repeat=length))
        frames = torch.stack([log_p[range(length), path].sum() for path in paths])
        says = [[3, *collapsed(path), 3] for path in paths]
        costs = torch.stack([sum(table[pair] for pair in itertools.pairwise(said)) for said in says])
        fits = torch.tensor([collapsed(path) == target for path in paths])
        right = frames.masked_fill(~fits, -torch.inf).softmax(dim=0).detach()
        same = torch.tensor([[float(sum(np.equal(a, b))) for b in paths] for a in paths], dtype=torch.float64)
        wanted[item] = length - (0.7 * frames + costs).softmax(dim=0) @ same @ right
    found, wanted = head.loss(x, MASK, texts), wanted.mean()
    assert torch.allclose(found.double(), wanted, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(side, head.linear.weight)[0] for side in (found, wanted))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


def test_alignments_of_the_target_share_out_every_frame():
    head, x = ctc_head("smbr")
    texts = torch.tensor([[1, 2], [2, -1], [-1, -1], [1, 1]])
    share = aligned(head.linear(x).log_softmax(dim=-1), MASK, texts)
    assert torch.allclose(share.sum(dim=-1)[MASK], torch.ones(9), atol=1e-5)
    assert torch.allclose(share[1, 0], torch.tensor([0.0, 0.0, 1.0]), atol=1e-5)
    assert torch.allclose(share[3, :3], torch.tensor([[0, 1.0, 0], [1, 0, 0], [0, 1, 0]]), atol=1e-5)


def test_errors_are_counted_in_words():
    assert word_errors([1, 2, 3], [1, 3], None) == 1
    spellings = ["", " he", "l", "lo", " ", "hel"]
    assert word_errors([1, 2, 3], [4, 5, 3], spellings) == 0  # "hello" twice
    assert word_errors([1, 3], [4, 5, 3], spellings) == 1 and word_errors([1, 2, 3, 1], [4, 5, 2, 3], spellings) == 2
    assert word_errors([1, 3, 4], [4, 1, 3], spellings) == 0 and word_errors([], [1, 1], spellings) == 2


def test_expected_errors_of_every_list_of_texts():
    errors = torch.tensor(list(itertools.product(range(3), repeat=3)))
    log_p = random_scores(27, 3).requires_grad_()
    for count in range(4):
        real = (torch.arange(3) < count).expand(27, 3)
        found = expected_errors(log_p, errors, real)
        for row in range(27):
            p, wrong = log_p[row, :count].exp(), errors[row, :count].double()
            wanted = (p * (wrong - wrong.mean())).sum() / p.sum() if count else log_p.new_zeros(())
            assert found[row].item() == pytest.approx(wanted.item(), abs=1e-12)
        assert torch.autograd.gradcheck(lambda log_p, real=real: expected_errors(log_p, errors, real), log_p)
        (slope,) = torch.autograd.grad(found.sum(), log_p)
        assert slope.isfinite().all() and bool(slope.any()) == (count > 1)


def test_mwer_of_ctc_is_that_of_all_texts():
    """A beam as wide as there are texts: every path of units counts for the text that it says."""
    head, x = ctc_head("mwer", likelihood=0.0, beam=40)
    texts = torch.tensor([[1, 2], [2, -1], [-1, -1], [1, 1]])
    wanted = []
    for item, length in enumerate(LENGTHS):
        log_p = head.linear(x[item, :length]).double().log_softmax(dim=-1)
        target = [unit for unit in texts[item].tolist() if unit >= 0]
        p: dict[tuple, torch.Tensor] = {}
        for path in itertools.product(range(3), repeat=length):
            said = tuple(collapsed(path))
            p[said] = p.get(said, 0) + log_p[range(length), path].sum().exp()
        wrong = torch.tensor([float(word_errors(said, target)) for said in p]).double()
        wanted.append((torch.stack(list(p.values())) * (wrong - wrong.mean())).sum())
        assert len(p) <= head.beam
    found, wanted = head.loss(x, MASK, texts), torch.stack(wanted).mean()
    assert torch.allclose(found.double(), wanted, rtol=1e-4)
    ours, theirs = (torch.autograd.grad(side, head.linear.weight)[0] for side in (found, wanted))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


def transducer(**keywords) -> Transducer:
    torch.manual_seed(0)
    return Transducer(4, 3, **dict(criterion="mwer", predictor_dim=3, joint=3, max_symbols=1) | keywords)


def test_mwer_of_a_transducer_is_that_of_all_texts():
    head, x = transducer(likelihood=0.0, beam=10), random_scores(1, 2, 4).float()
    texts = [list(text) for count in range(3) for text in itertools.product((1, 2), repeat=count)]
    mask, target = MASK[:1, :2], torch.tensor([[2, 1]])
    encoded = head(x, mask)
    nll = [head.nll(encoded, mask, torch.tensor([text], dtype=torch.int64)) for text in texts]
    p = torch.stack([-one[0] for one in nll]).softmax(dim=0)
    wrong = torch.tensor([float(word_errors(text, [2, 1])) for text in texts])
    wanted = (p * (wrong - wrong.mean())).sum()
    found = head.loss(x, mask, target)
    assert torch.allclose(found, wanted, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(side, head.units.weight)[0] for side in (found, wanted))
    assert theirs.any() and torch.allclose(ours, theirs, atol=1e-6)


def heads(beam: int = 4, **keywords) -> dict:
    """A head of each kind and criterion, and a batch of targets for it: empty, too long, of no frames."""
    texts = torch.tensor([[1, 2, 2], [1, 2, 1], [-1, -1, -1], [-1, -1, -1]])
    frames = torch.randint(-1, 3, (4, 5), generator=torch.Generator().manual_seed(2))
    return {
        "ctc mwer": (ctc_head("mwer", beam=beam, **keywords)[0], texts),
        "ctc smbr": (ctc_head("smbr", **keywords)[0], texts),
        "transducer mwer": (transducer(beam=beam, **keywords), texts),
        "framewise smbr": (Framewise(4, 3, criterion="smbr", **keywords), frames),
    }


def gradients(head, loss: torch.Tensor) -> torch.Tensor:
    found = torch.autograd.grad(loss, list(head.parameters()), allow_unused=True)
    return torch.cat([slope.flatten() for slope in found if slope is not None])


@pytest.mark.parametrize("name", heads())
def test_padding_and_batch_mates_change_nothing(name):
    head, targets = heads()[name]
    x, weight = random_scores(4, 5, 4).float(), torch.tensor([0.5, 2.0, 1.0, 1.5])
    loss = head.loss(x, MASK, targets, weight)
    assert loss.dtype == torch.float32 and loss.isfinite() and gradients(head, head.loss(x, MASK, targets)).any()
    wide = torch.full((4, 9, 4), 7.0)
    wide[:, :5] = x.masked_fill(~MASK[..., None], -50.0)
    longer = torch.nn.functional.pad(targets, (0, 4), value=-1)
    again = head.loss(wide, mask_of(torch.tensor(LENGTHS), 9), longer, weight)
    assert torch.allclose(again, loss, rtol=1e-5)
    assert torch.allclose(gradients(head, again), gradients(head, loss), atol=1e-6)
    alone, shares = [], []
    for item, length in enumerate(LENGTHS):
        own = targets[item : item + 1, :length] if name.startswith("framewise") else targets[item : item + 1]
        infeasible = hasattr(head, "infeasible") and bool(head.infeasible(MASK[item : item + 1], own))
        counts = int((own >= 0).sum()) if name.startswith("framewise") else length > 0 or name.startswith("ctc")
        shares.append(float(weight[item]) * counts * (not infeasible))
        if length:
            alone.append(head.loss(x[item : item + 1, :length], MASK[item : item + 1, :length], own) * shares[-1])
    assert torch.allclose(sum(alone) / sum(shares), loss, rtol=1e-5)


@pytest.mark.parametrize("name", heads())
def test_nothing_to_learn_from_is_a_loss_of_0(name):
    head, targets = heads()[name]
    loss = head.loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool), targets[2:, :3].fill_(-1))
    assert loss == 0 and not gradients(head, loss).any()


@pytest.mark.parametrize("name", heads())
def test_out_of_training_the_loss_is_the_usual_one(name):
    """Validation losses of both stages compare, weights and predictions are those of the first, and it mixes in."""
    (head, targets), x = heads(likelihood=0.3)[name], random_scores(4, 5, 4).float()
    (pure, _), (usual, _) = heads(likelihood=0.0)[name], heads(likelihood=1.0)[name]
    for other in (pure, usual):
        other.load_state_dict(head.state_dict())
    mixed = 0.7 * pure.loss(x, MASK, targets) + 0.3 * usual.loss(x, MASK, targets)
    assert torch.allclose(head.loss(x, MASK, targets), mixed, rtol=1e-5)
    assert torch.equal(usual.loss(x, MASK, targets), head.eval().loss(x, MASK, targets))
    plain = type(head)(4, 3, **({"predictor_dim": 3, "joint": 3} if "transducer" in name else {}))
    plain.load_state_dict(head.state_dict())
    assert torch.equal(plain.loss(x, MASK, targets), head.loss(x, MASK, targets)) and not hasattr(plain, "fit")


@pytest.mark.parametrize("name", heads())
def test_training_lowers_what_is_expected(name):
    """With nothing of the usual loss in it, the expected errors of what is said go down."""
    head, targets = heads(beam=12, likelihood=0.0)[name]
    x, optimizer = 0.3 * random_scores(1, 5, 4).float(), torch.optim.SGD(head.parameters(), lr=0.5)
    before = risk(head, x, targets[:1])
    for _ in range(16):
        optimizer.zero_grad()
        head.loss(x, MASK[:1], targets[:1]).backward()
        optimizer.step()
    assert risk(head, x, targets[:1]) < 0.8 * before


@torch.no_grad()
def risk(head, x: torch.Tensor, targets: torch.Tensor) -> float:
    """Word errors of an item expected over all texts of up to three units; of sMBR, the wrong frames."""
    if getattr(head, "bigram", None) is not None:
        return float(head.loss(x, MASK[:1], targets))
    texts = [text for count in range(4) for text in itertools.product((1, 2), repeat=count)]
    units = torch.tensor([[*text, *[-1] * (3 - len(text))] for text in texts])
    mask, frames = MASK[:1].expand(len(texts), -1), head(x, MASK[:1]).expand(len(texts), -1, -1)
    nll = head.nll(frames, mask, units) if isinstance(head, Transducer) else nll_of(frames.log_softmax(-1), mask, units)
    errors = torch.tensor([float(word_errors(text, targets[0].tolist())) for text in texts])
    return float((nll.neg().softmax(dim=0) * errors).sum())


@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        ({"name": "ctc", "vocab": 3, "criterion": "mwer", "beam": 1}, "likelihood 0.1, beam 1, scale 1.0: expected"),
        ({"name": "transducer", "vocab": 3, "likelihood": 1.5}, "likelihood is 1.5, beam 4; expected 0 to 1"),
        ({"name": "framewise", "vocab": 1, "criterion": "smbr", "loss": "mae"}, "smbr is of loss classes, not mae"),
        ({"name": "transducer", "vocab": 3, "criterion": "smbr"}, "expected one of 'likelihood', 'mwer'"),
    ],
)
def test_criteria_that_cannot_be(part, wanted):
    with pytest.raises(InputError) as caught:
        create_model({"name": "dense", "channels": 4}, {"name": "conformer", "dim": 8, "depth": 1, "heads": 1}, part)
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


def test_a_bigram_knows_the_training_rows_of_its_fold_alone(tmp_path, monkeypatch):
    """What was counted names the rows, for no two are alike; a fold that goes on counts again."""
    rng, table = np.random.default_rng(0), []
    with seqformer.StoreWriter(tmp_path / "rows", "float32") as store:
        for row in range(12):
            x = rng.standard_normal((row + 5, 4)).astype(np.float32)
            place = {"id": f"row{row:02d}", "path": "rows", "row": store.add(x), "frames": len(x)}
            table.append(place | {"state": [row % 3] * len(x), "half": row % 2})
    seqformer.write_manifest(table, tmp_path / "rows.parquet")
    counted, fit = [], Bigram.fit
    monkeypatch.setattr(
        Bigram, "fit", lambda self, given: fit(self, [counted.append(one.tolist()) or one for one in given])
    )
    plain = small(tmp_path / "rows.parquet", folds={"kind": "column", "by": "half"}, metric={"name": "accuracy"})
    plain["head"] = {"name": "framewise", "target": "state", "criterion": "smbr"}
    train_run(plain, tmp_path, quiet=True)
    (tmp_path / "small/fold0/done.json").unlink()
    train_run(plain, tmp_path, quiet=True)
    own = [[[row % 3] * (row + 5) for row in range(12) if row % 2 != fold] for fold in (0, 1)]
    assert counted == own[0] + own[1] + own[0]


def test_a_run_goes_on_from_another_criterion(tmp_path):
    """init_from takes the weights whole, words are the tokenizer's, and no checkpoint holds more than before."""
    plain = change(TINY, run="first", data__manifest=str(poisoned(tmp_path, [])), train__epochs=1, augment=[])
    plain |= {"frontend": {"name": "dense", "channels": 4}, "data": plain["data"] | {"batch_frames": 400}}
    train_run(plain, tmp_path, quiet=True)
    for criterion in ("mwer", "smbr"):
        head = {"name": "ctc", "criterion": criterion}
        train_run(plain | {"run": criterion, "init_from": "first", "head": head}, tmp_path, quiet=True)
        done = polars.read_parquet(tmp_path / criterion / "fold0/oof.parquet")
        assert len(done) == 20
        (model, _), *_ = TrainedRun(tmp_path / criterion).folds()
        assert model.heads["ctc"].spellings == ["", "a", "b", "c"]
