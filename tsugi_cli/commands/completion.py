"""`tsugi completion`: what a shell needs to complete commands, options, keys and values."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from .options import Json

BASH = r"""# tsugi completion bash: put  source <(tsugi completion bash)  into ~/.bashrc
_tsugi_complete() {
    local IFS=$'\n' line="${COMP_LINE:0:COMP_POINT}"
    local word="${line##* }"
    COMPREPLY=($(tsugi completion words -- "$line" 2>/dev/null | cut -f1))
    local cut="${word%"${word##*[=:]}"}"  # bash takes "=" and ":" for ends of words: what stands before them stays
    COMPREPLY=("${COMPREPLY[@]#"$cut"}")
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=./] ]] && compopt -o nospace
}
complete -o default -F _tsugi_complete tsugi
"""
ZSH = r"""#compdef tsugi
# tsugi completion zsh: put  source <(tsugi completion zsh)  into ~/.zshrc, behind compinit
_tsugi() {
    local -a open closed; local word help
    while IFS=$'\t' read -r word help; do
        [[ $word == *[=./] ]] && open+=("$word") || closed+=("$word")
    done < <(tsugi completion words -- "${LBUFFER}" 2>/dev/null)
    (( $#open )) && compadd -S '' -- $open
    (( $#closed )) && compadd -- $closed
}
compdef _tsugi tsugi
"""
FISH = r"""# tsugi completion fish | source    (in ~/.config/fish/config.fish)
complete -c tsugi -f -a '(tsugi completion words -- (commandline -cp) 2>/dev/null)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def completion(
    context: typer.Context,
    what: Annotated[Literal["bash", "zsh", "fish", "words"], typer.Argument(help="Your shell.")],
    line: Annotated[str | None, typer.Argument(hidden=True)] = None,
    json: Json = False,
) -> None:
    """Print the completion script of a shell: source <(tsugi completion bash)."""
    from tsugi_cli.record.answer import Answer

    out = Answer.of(json)
    if what != "words":
        out.tell({"shell": what, "script": SCRIPTS[what]}, SCRIPTS[what].removesuffix("\n"))
        return
    for word, does in candidates(context.find_root().command, line or ""):
        out.tell({"word": word, "does": does}, f"{word}\t{does}")


def candidates(root: Any, line: str) -> list[tuple[str, str]]:
    """Return (word, what it does) of all words that may stand at the end of a command line.

    Args:
        root: The click command of `tsugi`.
        line: The command line up to the cursor, with the program's name.
    """
    *before, incomplete = line.split(" ")
    command, path = root, list[str]()
    for word in before[1:]:
        inner = getattr(command, "commands", {}).get(word)
        if inner is not None:
            command, path = inner, [*path, word]
    if incomplete.startswith("-"):
        found = [(name, each.help or "") for each in command.params for name in each.opts if name.startswith("-")]
    elif hasattr(command, "commands"):
        found = [(name, each.get_short_help_str()) for name, each in command.commands.items() if not each.hidden]
    else:
        found = _arguments(path, incomplete)
    return sorted((word, " ".join(does.split())) for word, does in found if word.startswith(incomplete))


def _arguments(path: list[str], incomplete: str) -> list[tuple[str, str]]:
    from tsugi_cli.config import completion as config
    from tsugi_cli.config import describe, overrides

    if path in (["recipes", "show"], ["recipes", "copy"]):
        return [(name, "") for name in overrides.recipe_names()]
    if path == ["settings"]:
        return [(each.key, each.about) for each in describe.settings()]
    return config.words(incomplete)
