"""CUDA text to C++ text: every inline PTX instruction becomes a call of a function of its name.

``asm volatile("shr.u32 %0, %1, %2;" : "=r"(r) : "r"(x), "r"(n))`` turns into
``ptx::shr_u32((r), in1, in2)``, which ``cuda_sm90.h`` defines. So the operands of an instruction,
their order and their number are run as they stand, and an instruction that nobody knows does not
compile.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

_ASM = re.compile(r"\basm\s*(?:volatile)?\s*\(")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_MULTIPLY = re.compile(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.(\w+)\.(\w+)$")
_DYNAMIC_SHARED = re.compile(r"extern __shared__[^;]*\b(\w+)\[\];")
_STATIC_SHARED = re.compile(r"__shared__ __align__\(\d+\) (\w+) (\w+)\[([^;]*)\];")
_TYPES = {".pred": "bool", ".b16": "uint16_t", ".b32": "uint32_t", ".b64": "uint64_t"}


def translate(text: str) -> str:
    """The kernel as C++ for the machine of ``machine_sm90.h``."""
    text = _DYNAMIC_SHARED.sub(r"#define \1 machine::dynamic_shared()", text)
    numbers = itertools.count()
    text = _STATIC_SHARED.sub(
        lambda m: f"auto &{m[2]} = machine::static_shared<{m[1]}[{m[3]}], {next(numbers)}>();",
        text,
    )
    out, at = [], 0
    while found := _ASM.search(text, at):
        end = _closing(text, found.end() - 1)
        out += [text[at : found.start()], _Statement.parse(text[found.end() : end]).cpp()]
        at = text.index(";", end) + 1
    return "".join(out) + text[at:]


def _closing(text: str, opening: int) -> int:
    """The index of the bracket that closes the one at ``opening``; strings count for nothing."""
    depth, at = 0, opening
    while True:
        if text[at] == '"':
            at = _STRING.match(text, at).end()  # type: ignore[union-attr]
            continue
        depth += (text[at] in "([{") - (text[at] in ")]}")
        if depth == 0:
            return at
        at += 1


def _split(text: str, separator: str) -> list[str]:
    """Split outside of brackets and strings; ``::`` between names is no separator."""
    parts, start, at = [], 0, 0
    while at < len(text):
        if text[at] == '"':
            at = _STRING.match(text, at).end()  # type: ignore[union-attr]
            continue
        if text[at] in "([{":
            at = _closing(text, at)
        if text[at] == separator:
            parts.append(text[start:at].strip())
            start = at + 1
        at += 1
    return [*parts, text[start:].strip()]


@dataclass(frozen=True)
class _Statement:
    """One asm statement: its PTX, and the C++ expression behind each operand."""

    ptx: str
    outputs: list[str]
    inputs: list[str]

    @classmethod
    def parse(cls, inside: str) -> _Statement:
        sections = [*_split(inside, ":"), "", "", ""]
        ptx = "".join(_STRING.findall(sections[0])).replace("\\n", "\n")
        operands = [
            [part[part.index("(") + 1 : -1] for part in _split(section, ",") if part]
            for section in sections[1:3]
        ]
        return cls(ptx, *operands)

    def cpp(self) -> str:
        """A block of statements, on one line so that line numbers stay."""
        if not self.ptx.strip():
            return "{}"
        inputs = (
            f"const auto &in{len(self.outputs) + i} = {expression};"
            for i, expression in enumerate(self.inputs)
        )
        return "{" + " ".join([*inputs, *self._instructions()]).replace("\n", " ") + "}"

    def _instructions(self) -> Iterator[str]:
        vectors = itertools.count()
        rest = self.ptx.strip()
        while rest:
            if rest[0] in "{}":
                yield rest[0]
                rest = rest[1:].lstrip()
            elif label := re.match(r"(\w+):(?!:)", rest):
                yield f"{label[1]}: (void)0;"
                rest = rest[label.end() :].lstrip()
            else:
                one, _, rest = rest.partition(";")
                rest = rest.lstrip()
                yield self._instruction(one.strip(), vectors)

    def _instruction(self, text: str, vectors: Iterator[int]) -> str:
        guard = re.match(r"@(!?)(\w+)\s+", text)
        if guard:
            text = text[guard.end() :]
        opcode, _, operands = text.partition(" ")
        if opcode == ".reg":
            kind, _, names = operands.strip().partition(" ")
            return f"{_TYPES[kind]} {', '.join(name.strip() + '{}' for name in names.split(','))};"
        if opcode == "bra":
            code = f"goto {operands.strip()};"
        else:
            before: list[str] = []
            parts = _split(operands, ",")
            given = [o for part in parts for o in self._operand(part, before, vectors)]
            code = f"{' '.join(before)} ptx::{_function(opcode)}({', '.join(given)});"
        return f"if ({guard[1]}{guard[2]}) {code}" if guard else code

    def _operand(self, text: str, before: list[str], vectors: Iterator[int]) -> Iterator[str]:
        if not text or text == "_":
            return
        if text[0] == "[":
            for part in _split(text[1:-1], ","):
                yield from self._operand(part, before, vectors)
        elif text[0] == "{":
            items = [o for p in _split(text[1:-1], ",") for o in self._operand(p, before, vectors)]
            name = f"vector{next(vectors)}"
            pointers = ", ".join(f"&({item})" for item in items)
            before.append(f"decltype(&({items[0]})) {name}[] = {{{pointers}}};")
            yield name
        elif number := re.fullmatch(r"%(\d+)", text):
            index = int(number[1])
            is_output = index < len(self.outputs)
            yield f"({self.outputs[index]})" if is_output else f"in{index}"
        else:
            yield text.removeprefix("_|").replace("%%", "special_").replace(".", "_")


def _function(opcode: str) -> str:
    if multiply := _MULTIPLY.match(opcode):
        n, a, b = multiply.groups()
        if a != b:
            raise ValueError(f"{opcode}: operands of two types")
        return f"wgmma_mma_async<{n}, ptx::{a}>"
    return opcode.replace("::", "__").replace(".", "_")
