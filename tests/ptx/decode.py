"""Turns the statements of a kernel into operations of the machine, one for each instruction.

An operation is a name, which the machine knows or not (machine/*.cpp), and places of registers.
What it does not know is an error: an instruction is executed by an exact rule or not at all.
"""

import array
import re
import struct
from dataclasses import dataclass, field

from registers import SPECIAL, places
from source import Kernel, Statement, UnknownError

SPACES = ("generic", "global", "shared", "param")
ORDERS = ("weak", "l2", "relaxed", "relaxed_part", "acquire", "release", "volatile")
BITS = {"pred": 1, "b16": 16, "b32": 32, "b64": 64, "f32": 32, "f64": 64}
BITS |= {f"{k}{b}": b for k in "usb" for b in (8, 16, 32, 64)}
NONE = -(2**31)
PLACES = 14
SHARED_BASE = 1024  # machine.h: kSharedBase


@dataclass
class Operation:
    name: str
    line: int
    guard: str = ""
    flip: bool = False
    operands: list[tuple] = field(default_factory=list)  # (written, register or constant place)
    number: int = 0
    space: str = "generic"
    order: str = "weak"
    bytes: int = 0
    count: int = 0
    width: int = 0
    narrow: bool = False
    target: str = ""  # of a branch


def split(text: str) -> list[str]:
    """Operands between commas that stand outside braces."""
    parts = re.findall(r"(?:\{[^}]*\}|[^,{])+", text)
    return [p.strip() for p in parts if p.strip()]


def vector(text: str) -> list[str]:
    return [p.strip() for p in text.strip("{} ").split(",")] if text.startswith("{") else [text]


class Decoder:
    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.constants = bytearray()
        self.known: dict[bytes, int] = {}
        self.operations: list[Operation] = []

    # ---- operands

    def bits_of(self, register: str) -> int:
        if register in SPECIAL:
            return 32
        prefix = re.fullmatch(r"(%?[a-z]+)\d*", register)
        if not prefix or prefix[1] not in self.kernel.registers:
            raise UnknownError(f"register {register}")
        return BITS[self.kernel.registers[prefix[1]]]

    def constant(self, value: bytes, lanes: int = 32) -> int:
        """The place of a constant that every lane sees."""
        key = value * lanes
        if key not in self.known:
            self.constants += bytes(-len(self.constants) % 32)
            self.known[key] = -1 - len(self.constants)
            self.constants += key
        return self.known[key]

    def source(self, text: str, t: str) -> tuple:
        """An operand that is read as type t."""
        bits = BITS[t]
        if text == "%clock64":  # of no meaning here: time stands still
            return (False, self.constant(bytes(8)))
        if text.startswith("%") or text in self.kernel.registers:
            if self.bits_of(text) != bits:
                raise UnknownError(f"{text} as {t}")
            return (False, text)
        if m := re.fullmatch(r"0f([0-9A-Fa-f]{8})", text):
            return (False, self.constant(struct.pack("<I", int(m[1], 16))))
        if m := re.fullmatch(r"0d([0-9A-Fa-f]{16})", text):
            return (False, self.constant(struct.pack("<Q", int(m[1], 16))))
        if text in self.kernel.shared:
            value = SHARED_BASE
        elif text in self.kernel.params:
            value = 0  # addresses of parameters count from their begin
        elif re.fullmatch(r"-?\d+|0x[0-9A-Fa-f]+", text) and t[0] != "f":
            value = int(text, 0)
        else:
            raise UnknownError(f"operand {text} as {t}")
        if t == "pred":
            return (False, self.constant(struct.pack("<I", 2**32 - 1 if value else 0), 1))
        return (False, self.constant((value % 2**bits).to_bytes(bits // 8, "little")))

    def target(self, text: str, t: str) -> tuple:
        if text == "_":
            return (True, NONE)
        if self.bits_of(text) != BITS[t]:
            raise UnknownError(f"{text} as {t}")
        return (True, text)

    def address(self, text: str, space: str) -> tuple[tuple, int, bool]:
        """Where the address lies, what is added, and whether it has 32 bits."""
        m = re.fullmatch(r"\[([^+\]]+)(?:\+(-?\d+))?\]", text)
        if not m:
            raise UnknownError(f"address {text}")
        base, offset = m[1].strip(), int(m[2] or 0)
        narrow = space == "shared" and (base[0] != "%" or self.bits_of(base) == 32)
        return self.source(base, "b32" if narrow else "b64"), offset, narrow

    # ---- instructions

    def decode(self) -> None:
        for s in self.kernel.statements:
            try:
                first = len(self.operations)
                self.statement(s)
            except (UnknownError, KeyError, IndexError, ValueError) as error:
                raise UnknownError(
                    f"{self.kernel.name}, PTX line {s.line}: {s.text}\n  unknown: {error!r}"
                ) from None
            for operation in self.operations[first:]:
                operation.guard = s.guard.removeprefix("!")
                operation.flip = s.guard.startswith("!")

    def add(self, name: str, line: int, *operands: tuple, **fields) -> None:
        self.operations.append(Operation(name, line, operands=list(operands), **fields))

    def statement(self, s: Statement) -> None:
        if s.text.endswith(":"):
            return self.add("label", s.line, target=s.text[:-1])
        full, _, rest = s.text.partition(" ")
        operands, kinds = split(rest), full.split(".")[1:]
        name = full.split(".")[0]
        special = getattr(self, f"decode_{name}", None)
        if special:
            return special(s.line, full, kinds, operands)
        t = kinds[-1]
        types = [t] * len(operands)
        if name in ("shl", "shr"):
            types[2] = "u32"
        elif name in ("mul", "mad") and kinds[0] == "wide":
            types[0] = (types[3:] and f"{t[0]}{2 * BITS[t]}") or f"{t[0]}{2 * BITS[t]}"
            types[3:] = types[:1] * len(types[3:])
        elif name == "setp":
            types[0] = "pred"
        elif name in ("bfi", "lop3"):
            types = ["b32"] * len(operands)
        self.registers(full, s.line, operands, types)

    def registers(self, name: str, line: int, operands: list[str], types: list[str]) -> None:
        sources = [self.source(o, t) for o, t in zip(operands[1:], types[1:], strict=True)]
        self.add(name, line, self.target(operands[0], types[0]), *sources)

    def decode_mov(self, line: int, full: str, kinds: list[str], operands: list[str]) -> None:
        t = kinds[0]
        if t == "pred":
            return self.registers("mov.pred", line, operands, [t, t])
        bits = BITS[t]
        half = f"b{bits // 2}"
        if operands[1].startswith("{"):
            low, high = vector(operands[1])
            self.add(f"pack.{bits}", line, self.target(operands[0], t), self.source(low, half),
                     self.source(high, half))  # fmt: skip
        elif operands[0].startswith("{"):
            low, high = vector(operands[0])
            self.add(f"unpack.{bits}", line, self.target(low, half), self.target(high, half),
                     self.source(operands[1], t))  # fmt: skip
        else:
            self.registers(f"mov.{bits}", line, operands, [t, t])

    def decode_selp(self, line: int, full: str, kinds: list[str], operands: list[str]) -> None:
        t = kinds[0]
        self.registers(f"selp.{BITS[t]}", line, operands, [t, t, t, "pred"])

    def decode_cvt(self, line: int, full: str, kinds: list[str], operands: list[str]) -> None:
        if kinds[-2] in ("bf16x2", "f16x2"):
            return self.registers(full, line, operands, ["b32", "f32", "f32"])
        own = {"f16": "b16", "tf32": "b32"}
        types = [own.get(k, k) for k in kinds[-2:]]
        # Integers may lie in wider registers, whose widths then belong to the name.
        widths = [self.bits_of(o) for o in operands]
        if widths != [BITS[t] for t in types]:
            full += f"/{widths[0]}/{widths[1]}"
            types = [f"b{w}" for w in widths]
        self.registers(full, line, operands, types)

    def decode_cvta(self, line: int, full: str, kinds: list[str], operands: list[str]) -> None:
        name = "mov.64" if full == "cvta.to.global.u64" else full
        self.registers(name, line, operands, ["u64", "u64"])

    def decode_mapa(self, line: int, full: str, kinds: list[str], operands: list[str]) -> None:
        self.registers(full, line, operands, ["u64", "u64", "u32"])

    def decode_bra(self, line: int, full: str, kinds: list[str], operands: list[str]) -> None:
        self.add("bra", line, target=operands[0])

    def plain(self, line: int, full: str, kinds: list[str], operands: list[str]) -> None:
        if operands:
            raise UnknownError(full)
        self.add(full, line)

    def decode_prefetch(self, line: int, full: str, kinds: list[str], operands: list[str]) -> None:
        """A hint, of which no value follows. The address must be in memory; see Fetches."""
        base, offset, narrow = self.address(operands[0], "global")
        self.add("prefetch", line, base, number=offset, space="global", bytes=1, narrow=narrow)

    decode_ret = decode_trap = decode_membar = decode_fence = plain

    def access(self, kinds: list[str], load: bool) -> dict:
        """Space, order, elements and type of ld or st."""
        rest, order, space, count = kinds[:-1], "weak", "generic", 1
        if rest and rest[0] in ("relaxed", "volatile", "acquire" if load else "release"):
            order = rest.pop(0)
            if order != "volatile" and rest.pop(0) != "gpu":
                raise UnknownError("scope")
        if rest and rest[0] in SPACES:
            space = rest.pop(0)
        if rest and rest[0] == "cg" and order == "weak":
            order = "l2"
            rest.pop(0)
        if rest and rest[0] in ("v2", "v4"):
            count = int(rest.pop(0)[1])
        if rest:
            raise UnknownError(".".join(kinds))
        return {"space": space, "order": order, "count": count, "bytes": BITS[kinds[-1]] // 8}

    def decode_ld(self, line: int, full: str, kinds: list[str], operands: list[str]) -> None:
        fields = self.access(kinds, True)
        base, offset, narrow = self.address(operands[1], fields["space"])
        targets = vector(operands[0])
        width = max(8, self.bits_of(next(o for o in targets if o != "_"))) // 8
        fields |= {"width": width, "narrow": narrow}
        name = "ld.signed" if kinds[-1][0] == "s" else "ld"
        written = [self.target(o, f"b{8 * width}") for o in targets]
        if fields["order"] != "relaxed" or len(written) == 1:
            return self.add(name, line, base, *written, number=offset, **fields)
        fields["count"] = 1  # may be torn between its elements
        for i, one in enumerate(written):
            fields["order"] = "relaxed_part" if i else "relaxed"
            self.add(name, line, base, one, number=offset + i * fields["bytes"], **fields)

    def decode_st(self, line: int, full: str, kinds: list[str], operands: list[str]) -> None:
        fields = self.access(kinds, False)
        base, offset, narrow = self.address(operands[0], fields["space"])
        values = vector(operands[1])
        registers = [v for v in values if v.startswith("%")]
        width = self.bits_of(registers[0]) // 8 if registers else fields["bytes"]
        sources = [self.source(v, f"b{8 * width}" if v[:2] not in ("0f", "0d") else kinds[-1])
                   for v in values]  # fmt: skip
        self.add("st", line, base, *sources, number=offset, width=width, narrow=narrow, **fields)

    def decode_cp(self, line: int, full: str, kinds: list[str], operands: list[str]) -> None:
        if full == "cp.async.commit_group":
            return self.add(full, line)
        if full == "cp.async.wait_group":
            return self.add(full, line, number=int(operands[0]))
        size = int(operands[2])
        if full != f"cp.async.{'cg' if size == 16 else 'ca'}.shared.global" or size not in (
            4,
            8,
            16,
        ):
            raise UnknownError(full)
        to, to_offset, narrow = self.address(operands[0], "shared")
        start, offset, _ = self.address(operands[1], "global")
        if not narrow:
            raise UnknownError(operands[0])
        source_bytes = self.source(operands[3] if len(operands) > 3 else str(size), "u32")
        number = to_offset * 2**32 + offset % 2**32
        self.add("cp.async", line, to, start, source_bytes, number=number, bytes=size)

    def decode_bar(self, line: int, full: str, kinds: list[str], operands: list[str]) -> None:
        given = [self.source(o, "u32") for o in operands]
        if full == "bar.sync":
            self.add(full, line, *given, *[self.source("-1", "s32")][len(given) - 1 :])
        else:
            self.add(full, line, *given)

    def decode_barrier(self, line: int, full: str, kinds: list[str], operands: list[str]) -> None:
        self.plain(line, full, kinds, operands)

    def decode_shfl(self, line: int, full: str, kinds: list[str], operands: list[str]) -> None:
        target, _, valid = operands[0].partition("|")
        sources = [self.source(o, "b32") for o in operands[1:5]]
        self.add(full, line, self.target(target, "b32"), self.target(valid or "_", "pred"),
                 *sources)  # fmt: skip

    def decode_vote(self, line: int, full: str, kinds: list[str], operands: list[str]) -> None:
        predicate = operands[1].removeprefix("!")
        self.add(
            full, line, self.target(operands[0], kinds[-1]), self.source(predicate, "pred"),
            self.source(operands[2], "b32"), number=0 if predicate == operands[1] else 2**32 - 1,
        )  # fmt: skip

    def decode_mma(self, line: int, full: str, kinds: list[str], operands: list[str]) -> None:
        d, a, b, c = (vector(o) for o in operands)
        self.add(
            full, line, *(self.target(x, "f32") for x in d),
            *(self.source(x, "b32") for x in a + b), *(self.source(x, "f32") for x in c),
        )  # fmt: skip

    def decode_ldmatrix(self, line: int, full: str, kinds: list[str], operands: list[str]) -> None:
        base, offset, narrow = self.address(operands[1], "shared")
        if not narrow:
            raise UnknownError(operands[1])
        targets = [self.target(x, "b32") for x in vector(operands[0])]
        self.add(full, line, *targets, base, number=offset)


# ---- for the machine


@dataclass
class Program:
    """What define_kernel of the machine takes."""

    name: str
    code: bytes
    count: int
    constants: bytes
    register_bytes: int
    param_bytes: int
    most_threads: int
    sources: list[tuple[int, str]]


def decode(kernel: Kernel, names: dict[str, int]) -> Program:
    """`names`: the operations that the machine knows."""
    decoder = Decoder(kernel)
    decoder.decode()
    operations = decoder.operations
    place, register_bytes = places(operations, decoder.bits_of)
    labels = {o.target: i for i, o in enumerate(operations) if o.name == "label"}
    code = array.array("q")
    for o in operations:
        if o.name not in names:
            text = next(s.text for s in kernel.statements if s.line == o.line)
            raise UnknownError(f"{kernel.name}, PTX line {o.line}: {text}\n  unknown: {o.name}")
        at = [place[r] if isinstance(r, str) else r for _, r in o.operands]
        code.extend((
            names[o.name], place[o.guard] if o.guard else NONE, o.flip, o.line,
            labels[o.target] if o.name == "bra" else o.number,
            SPACES.index(o.space), ORDERS.index(o.order), o.bytes, o.count, o.width, o.narrow,
            *at, *[NONE] * (PLACES - len(at)),
        ))  # fmt: skip
    sources, before = [], ""
    for s in kernel.statements:
        if s.source != before:
            sources.append((s.line, s.source))
            before = s.source
    return Program(
        kernel.name, code.tobytes(), len(operations), bytes(decoder.constants), register_bytes,
        *kernel.params.values(), kernel.most_threads, sources,
    )  # fmt: skip
