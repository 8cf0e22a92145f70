"""A web page to talk to a checkpoint, or to two side by side.

    llava demo
    llava demo --model checkpoints/stage2 --compare checkpoints/stage1

Without --model it is the quickstart's. Only this machine can open the page, unless --host says otherwise; uploaded
pictures are deleted when it ends. See docs/chat.md.
"""

import argparse
import logging
import os
import signal
import tempfile
from importlib.util import find_spec
from pathlib import Path

from recipes.chat import add_loading_flags
from recipes.generating.generate_flags import positive, positive_number


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava demo", description="A web page to talk to a checkpoint. See docs/chat.md.", allow_abbrev=False
    )
    add_loading_flags(parser)
    parser.add_argument("--compare", metavar="MODEL", help="another checkpoint, which answers beside the first")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (%(default)s)")
    parser.add_argument("--port", type=positive, help="(the first free one from 7860)")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-upload", type=positive_number, default=10, metavar="MB", help="(%(default)s)")
    limits.add_argument("--max-megapixels", type=positive_number, default=40, metavar="N", help="(%(default)s)")
    limits.add_argument("--max-tokens", type=positive, default=1024, metavar="N", help="of an answer (%(default)s)")
    limits.add_argument("--at-once", type=positive, default=1, metavar="N", help="answers; others wait (%(default)s)")
    return parser


def serve(args: argparse.Namespace) -> None:
    if find_spec("gradio") is None:
        raise ValueError('`llava demo` needs gradio, which is not installed: pip install -e ".[demo]".')
    from recipes.talking.demo_talks import Talks
    from recipes.talking.talker import load_talker

    names = [args.model] if args.compare is None else [args.model, args.compare]
    talkers = {}
    for name in names:
        talker = load_talker(name, args.dtype, args.device, args.load_in, {})
        talkers[name or talker.model.name_or_path] = talker
    if len(talkers) < len(names):
        raise ValueError(f"--compare {args.compare} is the checkpoint of --model too. Give another, or leave it out.")
    talks = Talks(talkers, int(args.max_megapixels * 1e6), args.max_tokens)
    with tempfile.TemporaryDirectory(prefix="llava-demo-") as folder:
        # Read when gradio is imported: where uploads go, and that it tells nobody.
        os.environ |= {"GRADIO_TEMP_DIR": f"{folder}/uploads", "GRADIO_ANALYTICS_ENABLED": "False"}
        from recipes.talking.demo_page import CSS, THEME, make_page

        drawings = Path(folder, "drawings")
        drawings.mkdir()
        page = make_page(talks, drawings, args.at_once)
        try:
            _, url, _ = page.launch(
                server_name=args.host,
                server_port=args.port,
                max_file_size=int(args.max_upload * 2**20),  # as Gradio counts when it names the limit
                mcp_server=False,
                allowed_paths=[str(drawings)],
                theme=THEME,
                css=CSS,
                show_error=True,
                share=False,
                ssr_mode=False,
                enable_monitoring=False,
                run_history=False,
                footer_links=[],
                state_session_capacity=1000,
                quiet=True,
                prevent_thread_lock=True,
            )
        except OSError as error:
            place = args.host if args.port is None else f"{args.host}:{args.port}"
            raise ValueError(f"Nothing can listen at {place}: {error}. Give another --host or --port.") from error
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that uploads are deleted then, too
        print(f"{url} shows {' and '.join(talkers)}. Ctrl-C ends it.", flush=True)
        page.block_thread()


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.WARNING)
    serve(parser().parse_args(argv))


if __name__ == "__main__":
    main()
