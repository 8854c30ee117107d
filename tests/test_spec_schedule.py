"""SpecAugment in steps of the training: how many masks, how wide, from which update on; padding; resuming."""

import pytest
import torch

from seqformer.checkpoint import load_weights
from seqformer.errors import InputError
from seqformer.frontends.audio import SteppedSpecAugment
from seqformer.nn.mask import mask_of
from seqformer.train.crossval import train_run
from seqformer.train.loop import FoldTrainer

torch.set_num_threads(1)


@pytest.mark.parametrize(("step", "least", "factor"), [(0, 0, 1), (9, 0, 1), (10, 1, 2), (19, 1, 2), (20, 2, 4)])
def test_masks_are_as_many_as_the_update_allows(step, least, factor):
    """Masks of one frame or bin, which seldom meet: [s, max(T // 100, 2) m] in time, [s, 1 + m] in frequency."""
    torch.manual_seed(0)
    augment, lengths = SteppedSpecAugment([10, 20], time_width=1, freq_width=1), torch.tensor([1000, 150]).repeat(100)
    augment.begin_step(step)
    hidden = augment(torch.ones(200, 1000, 200), mask_of(lengths, 1000)) == 0
    bins, frames = hidden.all(dim=1).sum(dim=1), hidden.all(dim=2).sum(dim=1)
    for found, most in ((frames[0::2], 10 * factor), (frames[1::2], 2 * factor), (bins, 1 + factor)):
        assert found.max() <= most and found.max() >= 0.8 * most
        assert found.min() <= least + 1 and (not least or found.min() > 0)
    assert not hidden.all(dim=2)[1::2, 150:].any()


def test_counts_and_widths_are_uniform():
    torch.manual_seed(0)
    sizes = torch.full((3000,), 1000)
    one = SteppedSpecAugment._drawn(sizes, torch.ones_like(sizes), 1, 1, 5, 1000)
    widths = torch.bincount(one.sum(dim=1), minlength=7)
    assert widths[0] == widths[6] == 0 and (widths[1:6] - 600).abs().max() < 100
    counts = torch.bincount(SteppedSpecAugment._drawn(sizes, 3 + 0 * sizes, 3, 1, 1, 1000).sum(dim=1), minlength=5)
    assert counts[0] == counts[4] == 0 and (counts[1:4] - 1000).abs().max() < 150


def test_masks_do_not_depend_on_padding_and_are_for_training():
    augment, lengths, found = SteppedSpecAugment([0, 0]), torch.tensor([350, 7, 231]), []
    augment.begin_step(0)
    for size in (350, 900):
        torch.manual_seed(3)
        found.append(augment(torch.ones(3, size, 12), mask_of(lengths, size)))
    assert torch.equal(found[0], found[1][:, :350]) and (found[0] == 0).any(dim=2).any(dim=1).all()
    x = torch.ones(1, 5, 12)
    assert augment.eval()(x, torch.ones(1, 5, dtype=torch.bool)) is x


def test_a_run_goes_on_bit_for_bit_at_the_strength_it_had(tiny, tmp_path, monkeypatch):
    """Interrupted in the middle of an epoch, between the two steps, with gradients of several batches added up."""
    plain = tiny(frontend__spec_augment={"steps": [2, 4], "time_width": 4, "freq_width": 2}, train__epochs=2)
    told, begin, save = [], SteppedSpecAugment.begin_step, FoldTrainer.save
    monkeypatch.setattr(SteppedSpecAugment, "begin_step", lambda self, step: (told.append(step), begin(self, step)))
    train_run(plain, tmp_path / "whole", quiet=True)
    steps = list(told)

    def save_and_stop(self, name):
        save(self, name)
        if self.at.step == 4 and len(told) == len(steps) + 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(FoldTrainer, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train_run(plain, tmp_path / "cut", quiet=True)
    train_run(plain, tmp_path / "cut", quiet=True)
    assert steps == list(range(len(steps))) and told == 2 * steps and len(steps) > 5
    one, two = (load_weights(tmp_path / name / "tiny" / "fold0" / "last") for name in ("whole", "cut"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_keywords_of_both_kinds_are_refused(tiny, tmp_path):
    with pytest.raises(InputError, match="time_masks"):
        train_run(tiny(frontend__spec_augment={"steps": [3, 6], "time_masks": 2}), tmp_path, quiet=True)
