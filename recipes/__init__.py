"""Chooses: model, data, rates, hardware. The only place that runs things, and the only one that prints.

Every module here is a command: `llava <name>`, or `python -m recipes.<name>`. It offers `parser()`, which returns its
`argparse.ArgumentParser`, and `main(argv=None)`, which runs it.
"""
