"""Small tokenizers of both families, and chat templates with the structure of those that people use.

Nothing here is copied: the templates say what a family's template does (where a turn begins and ends, what it trims,
what it rewrites), in as few words as that takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_TEXT = "The quick brown fox. The answer is 42. Hello there! What is it? one two three user assistant system ok fine"


@dataclass(frozen=True)
class Family:
    """A template and the tokens it needs.

    Attributes:
        jinja: The template.
        special: Its special tokens; the first is bos, the last eos.
        tokens: How text is encoded: byte-level, or as SentencePiece does in one of its forms.
        greedy: Special tokens swallow the white space behind them.
        plain: Added tokens that are not special.
        stop: What ends an answer.
        rewrites: Earlier turns are not shown as they were.
        system: It takes a system turn.
    """

    jinja: str
    special: tuple[str, ...]
    stop: str
    tokens: str = "bytes"
    greedy: bool = False
    plain: tuple[str, ...] = ()
    rewrites: bool = False
    system: bool = True
    prefix: str = ""
    """What stands between the generation prompt and an answer."""


def _chatml(more: str = "", think: str = "") -> str:
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        + (think or "{{ m['content'] }}")
        + "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        + more
        + "{% endif %}"
    )


_QWEN3 = (
    "{% set c = m['content'] %}{% if m['role'] == 'assistant' %}"
    "{% if loop.last or (not loop.last and messages[loop.index0:] | selectattr('role', 'equalto', 'user') | list "
    "| length == 0) %}{{ '<think>\n' + (m['reasoning_content'] or '') + '\n</think>\n\n' + c }}{% else %}"
    "{{ c }}{% endif %}{% else %}{{ c }}{% endif %}"
)
_LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set s = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set ms = messages[1:] %}{% else %}{% set s = '' %}{% set ms = messages %}{% endif %}{% for m in ms %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '<s>[INST] ' + (s if loop.first else '') + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' </s>' }}{% endif %}{% endfor %}"
)
_MISTRAL = (
    "{{ '<s>' }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
)
_LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_GEMMA = (
    "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' "
    "+ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<start_of_turn>model\n' }}{% endif %}"
)
_GEMMA3 = (
    "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] + '\n\n' %}"
    "{% set ms = messages[1:] %}{% else %}{% set s = '' %}{% set ms = messages %}{% endif %}{% for m in ms %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + (s if loop.first else '') "
    "+ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<start_of_turn>model\n' }}{% endif %}"
)
_ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"
)
_R1 = (
    "{{ '<|bos|>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{% set c = m['content'] %}{% if '</think>' in c %}"
    "{% set c = c.split('</think>')[-1] %}{% endif %}{{ '<|Assistant|>' + c + '<|eos|>' }}{% else %}"
    "{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
_GPT_OSS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' "
    "+ m['content'] + ('<|return|>' if loop.last and not add_generation_prompt else '<|end|>') }}{% else %}"
    "{{ '<|start|>' + m['role'] + '<|message|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_NO_THINK = (
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)

FAMILIES = {
    "llama-2": Family(_LLAMA2, ("<s>", "</s>"), "</s>", tokens="metaspace", prefix=" "),
    "mistral": Family(_MISTRAL, ("<s>", "</s>"), "</s>", tokens="metaspace", system=False, prefix=" "),
    "llama-3": Family(
        _LLAMA3, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"
    ),
    "qwen-2.5": Family(_chatml(), _CHATML, "<|im_end|>"),
    "qwen-2.5 base": Family(_chatml(), ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), "<|im_end|>"),
    "qwen-3": Family(
        _chatml(_NO_THINK, _QWEN3), _CHATML, "<|im_end|>", plain=("<think>", "</think>"), rewrites=True
    ),
    "smollm2": Family(_chatml(), _CHATML, "<|im_end|>"),
    "gemma-2": Family(
        _GEMMA,
        ("<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>"),
        "<end_of_turn>",
        tokens="metaspace",
        system=False,
    ),
    "gemma-3": Family(
        _GEMMA3, ("<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>"), "<end_of_turn>", tokens="unigram"
    ),
    "tinyllama": Family(_ZEPHYR, ("<s>", "</s>"), "</s>", tokens="prepend"),
    "xlm-r": Family(_chatml(), _CHATML, "<|im_end|>", tokens="always"),
    "phi-3": Family(
        _PHI3,
        ("<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        "<|end|>",
        tokens="prepend",
        greedy=True,
    ),
    "phi-4": Family(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
        ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"),
        "<|im_end|>",
    ),
    "deepseek-r1": Family(
        _R1, ("<|bos|>", "<|User|>", "<|Assistant|>", "<|eos|>"), "<|eos|>", plain=("<think>", "</think>")
    ),
    "gpt-oss": Family(
        _GPT_OSS,
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"),
        "<|return|>",
        rewrites=True,
        prefix="<|channel|>final<|message|>",
    ),
}  # fmt: skip


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """The small tokenizer of a family, with its template."""
    family = FAMILIES[name]
    made = _byte_level() if family.tokens == "bytes" else _sentencepiece(family.tokens)
    special = [AddedToken(text, special=True, normalized=False, rstrip=family.greedy) for text in family.special]
    made.add_special_tokens(special)
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in family.plain])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=family.special[0], eos_token=family.special[-1], pad_token=family.special[-1]
    )
    wrapped.chat_template = family.jinja
    return wrapped


def _byte_level() -> Tokenizer:
    """BPE on bytes, with a few merges."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("t", "h"),
        ("th", "e"),
        ("Ġ", "t"),
        ("i", "s"),
        ("Ġ", "is"),
        ("<", "|"),
        ("|", ">"),
        ("H", "e"),
        ("l", "l"),
    ]
    vocab = {symbol: at for at, symbol in enumerate([*symbols, *("".join(pair) for pair in merges)])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    return made


def _sentencepiece(form: str) -> Tokenizer:
    """As SentencePiece has it: a space belongs to the word behind it, unknown characters fall back to bytes.

    Forms: "metaspace" begins a text with a space, "always" every stretch between special tokens, "prepend" does so by
    its normaliser as the first Llamas do, "unigram" is another model and adds no space at all.
    """
    words = sorted({"▁" + word for word in _TEXT.split()} | set(_TEXT.split()))
    letters = sorted(set("▁" + _TEXT + "<>|/[]_:,'\n"))
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    merges: list[tuple[str, str]] = []
    vocab: dict[str, int] = {"<unk>": 0}
    for symbol in [*bytes_, *letters]:
        vocab.setdefault(symbol, len(vocab))
    for word in words:
        for end in range(2, len(word) + 1):
            pair = (word[: end - 1], word[end - 1])
            if word[:end] not in vocab and pair[0] in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append(pair)
    scored = [(piece, -1.0 / len(piece) if len(piece) < 6 else -20.0) for piece in vocab]
    made = Tokenizer(
        models.Unigram(scored, unk_id=0, byte_fallback=True)
        if form in ("unigram", "always")
        else models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    if form == "prepend":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        scheme = {"metaspace": "first", "always": "always", "unigram": "never"}[form]
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=form == "always")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made
