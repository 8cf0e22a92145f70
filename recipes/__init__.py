"""Chooses: model, data, rates, hardware. Of the four packages the one that runs things and prints.

A module here is a command: `llava <name>`, or `python -m recipes.<name>`; but for `cli`, which finds them, and what
several of them use (`circumstances`, `scale`). It offers `parser()`, which returns its `argparse.ArgumentParser`, and
`main(argv=None)`, which runs it. `llava micro` is `recipes.micro.bases`.
"""
