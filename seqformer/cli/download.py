"""The command that fetches public corpora, the only one that asks the network for data."""

from pathlib import Path
from typing import Annotated

import typer

from seqformer.errors import InputError


def download(
    corpus: Annotated[str, typer.Argument(help="librispeech, mini_librispeech, musan or rirs_noises.")],
    out: Annotated[Path, typer.Option(help="The folder for the archives.")],
    part: Annotated[list[str] | None, typer.Option(help="Which part, such as dev-clean; may be repeated.")] = None,
    mirror: Annotated[
        str | None, typer.Option(help="Another base address, such as https://us.openslr.org/resources.")
    ] = None,
    unpack: Annotated[bool, typer.Option(help="Unpack each archive into the folder as well.")] = False,
) -> None:
    """Download parts of a public corpus; a download that was cut goes on where it stopped."""
    from seqformer import download as net
    from seqformer.train.log import RunLog

    known = net.CORPORA.get(corpus, {})
    if not part and len(known) > 1:
        raise InputError(f"{corpus} has several parts; give some, as --part {next(iter(known))}: {', '.join(known)}")
    archives = [net.find_archive(corpus, name) for name in dict.fromkeys(part or list(known) or [corpus])]
    with RunLog(None) as log:
        for archive in archives:
            url, path = f"{(mirror or net.MIRROR).rstrip('/')}/{archive.place}", out / archive.name
            log.say(f"{url} -> {path}")

            def tell(done: int, total: int, name: str = f"{archive.name}, MB") -> None:
                log.progress(name, done // 10**6, max(1, total // 10**6))

            net.fetch(url, path, archive.md5, tell)
            log.say(f"{path}: {path.stat().st_size:,} bytes, MD5 as published")
            if unpack:
                net.unpack(path, out)
                log.say(f"{path} unpacked into {out}")
