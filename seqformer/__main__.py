"""``python -m seqformer``: the same as the ``seqformer`` program."""

from seqformer.cli import main

main()
