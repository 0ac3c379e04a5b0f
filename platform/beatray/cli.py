"""The command line. Light on purpose: help, version and errors need neither torch nor ray nor mlflow.

Exit codes: 0 when all is done, 1 when the work failed or is unfinished, 2 when the overrides do not make sense, 75 of
pretrain, finetune, sweep and demo when they were asked to stop and the same command continues, 141 when the reader of
the output went away.
"""

from __future__ import annotations

import argparse
import io
import os
import select
import sys

from beatray.cli_parser import parser

READER_GONE = 141
"""As shells count the end of a program whose reader went away (128 + SIGPIPE)."""


def _parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse, with key=value overrides allowed before and after options (argparse alone takes only one run of them)."""
    args, left = parser().parse_known_args(argv)
    strange = [arg for arg in left if arg.startswith("-") or "=" not in arg or not hasattr(args, "overrides")]
    if strange:
        parser().error(f"unrecognised: {' '.join(strange)} (see beatray {args.command or ''} --help)")
    if left:
        args.overrides = [*args.overrides, *left]
    return args


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors that a user can fix are one readable line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # paths in letters that a terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(argv)
        sys.stdout.flush()
    except BrokenPipeError as error:
        if not _reader_is_gone():  # another pipe: of a store, a server, a worker
            print(f"beatray: {_user_message(error)}", file=sys.stderr)
            return 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    return code


def _reader_is_gone() -> bool:
    """Whether the reader of our own output has gone (`| head`), which the system reports as a broken pipe."""
    try:
        watched = select.poll()
        watched.register(sys.stdout.fileno(), 0)
        return bool(watched.poll(0))
    except (OSError, ValueError):  # no file at all
        return False


def _run(argv: list[str] | None) -> int:
    args = _parse(argv)
    if args.version:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(version("beatray"))
        except PackageNotFoundError:
            print("not installed (running from the source tree)")
        return 0
    if args.command is None:
        parser().print_help()
        return 2
    from beatray.errors import CorpusError, SettingsError

    try:
        return _dispatch(args)
    except SettingsError as error:
        print(f"beatray {args.command}: {error}", file=sys.stderr)
        return 2
    except CorpusError as error:
        print(f"beatray {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 1
    except BrokenPipeError:
        raise
    except Exception as error:
        reported = _user_message(error, _out(args))
        if reported is None:
            raise  # a fault of beatray itself: the traceback is what a report needs
        print(f"beatray {args.command}: {reported}", file=sys.stderr)
        return 1


def _out(args: argparse.Namespace) -> str | None:
    """Where the command writes, as far as it was given."""
    paths = [
        override.removeprefix("out=")
        for override in getattr(args, "overrides", None) or []
        if override.startswith("out=")
    ]
    return getattr(args, "out", None) or (paths[-1] if paths else None)


def _user_message(error: BaseException, out: str | None = None) -> str | None:
    """One line for an error of the disk, the network or Ray; None for any other. `out` is where the command writes."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return _user_message(cause, out) or f"{type(cause).__name__}: {cause}"
    if isinstance(error, OSError):
        from beatray.full_disk import NO_ROOM, full_paths

        if error.errno in NO_ROOM and not error.filename:
            return f"{error.strerror}: {full_paths(out)}"
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    library = type(error).__module__.split(".")[0]
    return f"{library}: {str(error).splitlines()[0]}" if library in ("ray", "pyarrow") and str(error) else None


def _dispatch(args: argparse.Namespace) -> int:
    if getattr(args, "print_config", False):
        return _print_config(args)
    if args.command == "ingest":
        if args.overrides[:1] == ["explain"]:
            from beatray.commands import explain

            return explain.run(args.overrides[1:])
        from beatray.commands import dry_run, ingest

        settings, cluster = ingest.settings_from(args.overrides, args.out, _id_key_file(args))
        if args.dry_run:
            return dry_run.run(settings)
        ingest.run(settings, cluster, overwrite=args.overwrite)
        return 0
    if args.command == "corpus":
        from beatray.commands import corpus
        from beatray.errors import SettingsError

        if args.overrides and args.action != "splits":
            raise SettingsError(f"corpus {args.action} takes no settings: {args.overrides[0]}")
        if args.html and args.action != "show":
            raise SettingsError(f"--html is for corpus show, and corpus {args.action} has no page")
        if args.html and args.json:
            raise SettingsError("--html writes a page and --json prints: give one of the two")
        if args.html:
            return corpus.write_html(args.path, args.html)
        if args.action == "show":
            return corpus.show_corpus(args.path, args.json)
        if args.action == "refused":
            return corpus.show_refused(args.path, args.json)
        if args.action == "verify":
            return corpus.verify_corpus(args.path, args.json)
        return corpus.show_splits(args.path, args.json, args.overrides)
    if args.command == "labels":
        from beatray.commands import labels

        return labels.check(args.overrides, args.json)
    if args.command == "compare":
        from beatray.commands import compare

        return compare.run(args.results, variants=args.variants, alpha=args.alpha, as_json=args.json)
    if args.command == "doctor":
        from beatray.commands import doctor

        return doctor.run(args.overrides, multi_node=args.multi_node, as_json=args.json, seconds=args.seconds)
    if args.command == "track":
        from beatray.commands import track

        return track.sync(args.folders)
    from beatray.errors import CheckpointError, TrainingError

    try:
        if args.command == "pretrain":
            from beatray.commands import pretrain

            return pretrain.run(pretrain.settings_from(args.overrides)).exit_code
        if args.command == "finetune":
            from beatray.commands import finetune

            return finetune.run(finetune.settings_from(args.overrides)).exit_code
        if args.command == "sweep":
            from beatray.commands import sweep

            if args.overrides[:1] == ["show"]:
                if args.resume:
                    parser().error("sweep show only shows: leave out --resume")
                return sweep.show(args.overrides[1:], json=args.json)
            return sweep.run(args.overrides, resume=args.resume)
        if args.command == "report":
            from beatray.commands import sweep_report

            return sweep_report.run(args.parent, args.corpus, args.against, args.results)
        if args.command == "models":
            from beatray.commands import models

            return models.run(args.name)
        if args.command == "bench":
            from beatray.commands import bench

            return bench.run(args.overrides, seconds=args.seconds, json_file=args.json)
        if args.command == "evaluate":
            from beatray.commands import evaluate

            evaluate.run(evaluate.settings_from(args.overrides))
            return 0
        if args.command == "beats":
            from beatray.commands import beats

            return beats.train(args.path, args.out, leads=args.leads, epochs=args.epochs, seed=args.seed)
        if args.command == "export":
            from beatray.commands import export

            return export.run(args.encoder, args.out, results=args.results, onnx=not args.no_onnx)
        if args.command == "predict":
            from beatray.commands import predict

            predict.run(predict.settings_from(args.overrides), show=args.show)
            return 0
        if args.command == "embed":
            from beatray.commands import embed

            embed.run(embed.settings_from(args.overrides))
            return 0
        from beatray.commands import demo

        return demo.run(demo.settings_from(args.overrides, args.out), overwrite=args.overwrite)
    except (CheckpointError, TrainingError) as error:
        print(f"beatray {args.command}: {error}", file=sys.stderr)
        return 1


def _id_key_file(args: argparse.Namespace) -> str | None:
    """Where the secret of the patient ids lies."""
    if args.salt_file is not None:
        from beatray.schema import warn_renamed

        warn_renamed("--salt-file", "--id-key-file")
    path: str | None = args.salt_file if args.id_key_file is None else args.id_key_file
    return path


def _print_config(args: argparse.Namespace) -> int:
    import json

    import yaml

    from beatray.config import compose
    from beatray.schema import as_dict, build

    extra = [f"out={args.out}"] if getattr(args, "out", None) is not None else []
    if args.command == "ingest" and (id_key_file := _id_key_file(args)) is not None:
        extra.append(f"id_key_file={id_key_file}")  # its path, never its content
    given = args.overrides
    if args.command == "ingest":
        from beatray.commands.ingest import split_overrides

        sources, given = split_overrides(given)
        content = {"sources": sources, **compose("ingest", [*given, *extra])}
    elif args.command == "sweep":
        from beatray.evaluate.settings import EvaluateSettings
        from beatray.sweep.plan import config_of, described, plan_from
        from beatray.sweep.settings import SweepSettings

        print(described(plan_from(given)))
        content = config_of(given)
        content["sweep"] = as_dict(build(SweepSettings, content["sweep"], "sweep."))
        content["evaluate"] = as_dict(build(EvaluateSettings, content["evaluate"], "evaluate."))
    elif args.command == "pretrain":
        from beatray.train.composed import pretrain_settings

        content = as_dict(pretrain_settings([*given, *extra]))  # what is printed is what would run
    elif args.command == "finetune":
        from beatray.finetune.settings import finetune_settings

        content = as_dict(finetune_settings([*given, *extra]))
    elif args.command == "predict":
        from beatray.commands import predict

        content = as_dict(predict.settings_from([*given, *extra]))
    elif args.command == "bench":
        from beatray.commands import bench

        content = as_dict(bench.settings_from(given))
    elif args.command == "demo":
        from beatray.commands.demo import settings_from

        content = as_dict(settings_from([*given, *extra], None))
    elif args.command == "evaluate":
        from beatray.corpus.label_settings import split_label_overrides
        from beatray.evaluate.own_labels import with_table
        from beatray.evaluate.settings import EvaluateSettings

        short, kinds = {"encoder": "encoder_path"}, {"evaluate": EvaluateSettings}
        labels, given = split_label_overrides(given)
        content = compose(args.command, [*given, *extra], extra=short, kinds=kinds)
        content["evaluate"] = with_table(content["evaluate"], labels)
        content["evaluate"] = as_dict(build(EvaluateSettings, content["evaluate"], "evaluate."))
    else:
        short = {"encoder": "encoder_path"} if args.command == "embed" else {}
        content = compose(args.command, [*given, *extra], extra=short)
    from beatray.track.secrets import without_secrets

    print(without_secrets(yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
