"""What an optimized program of XLA does, read from its text: bytes moved by kind of instruction, kernels, copies, loops.

In: `compiled.as_text()`. Out: `Moved` of every instruction that runs, and sums over them. What is counted of an
instruction is each operand once and each result once, as arrays in the device's memory:

- An operand of a fusion that the fusion only slices or gathers from counts as what is taken; one that is updated in place
  by dynamic-update-slice counts as the update, read and written.
- Arrays are as large as their layout makes them: a TPU's tiles, `T(8,128)`, are padded. What a TPU keeps in its on-chip
  memory, `S(1)`, moves nothing.
- The body of a loop counts as often as its known trip count says, once where that is unknown; of a conditional, the
  branch that moves most.

Caches are not modelled: what a GPU's L2 holds until it is read again is counted as read.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
    "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16, "token": 0, "opaque": 0,
}  # fmt: skip
FLOAT8_BYTES = 1  # f8e4m3fn and its relatives

KINDS = (
    "convolution", "matrix product", "reduction", "element-wise", "layout copy", "concatenate, pad", "slice, gather, scatter",
    "Cholesky, triangular", "collective", "transfer", "other",
)  # fmt: skip
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# What allocates, names or waits, and moves nothing.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "add-dependency", "async-update", "reshape", "get-dimension-size",
}  # fmt: skip
CONTROL = {"while", "conditional", "call"}
TAKES = {"slice", "dynamic-slice", "gather"}
MOVES = {"copy", "transpose", "bitcast-convert", "convert", "reverse", "copy-start", "copy-done"}
JOINS = {"concatenate", "pad"}
PLACES = {"slice", "dynamic-slice", "gather", "scatter", "dynamic-update-slice", "select-and-scatter", "sort"}
STARTS_HOST = {"infeed", "outfeed", "send", "recv"}
IN_MEMORY = (0, 5)  # a TPU's memory spaces: its own and the host's; the others are on the chip


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result.

    Args:
      dtype: as XLA writes it.
      dims: its sizes.
      tile: of the layout's last dimensions, () where there is none.
      order: dimensions from the one that varies fastest.
      space: memory it lies in; 0 is the device's.
    """

    dtype: str
    dims: tuple[int, ...]
    tile: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    space: int = 0

    def bytes(self) -> float:
        """What it has in the device's memory."""
        return 0 if self.tile and self.space not in IN_MEMORY else self.size()

    def size(self) -> float:
        """Bytes wherever it lies, padded to whole tiles."""
        sizes = [self.dims[i] for i in reversed(self.order)] if self.order else list(self.dims)
        for place, side in zip(reversed(range(len(sizes))), reversed(self.tile), strict=False):
            sizes[place] = -(-sizes[place] // side) * side
        return math.prod(sizes) * BYTES.get(self.dtype, FLOAT8_BYTES)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program. called: names of the computations that it runs or fuses."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    called: tuple[str, ...]
    rest: str  # attributes; of a parameter its number
    is_root: bool = False

    def attribute(self, pattern: str) -> str:
        """What the only group of `pattern` finds in the attributes; "" where it finds nothing."""
        found = re.search(pattern, self.rest)
        return found.group(1) if found else ""

    def bytes(self) -> float:
        return sum(array.bytes() for array in self.results)

    def size(self) -> float:
        return sum(array.size() for array in self.results)


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, each with its instructions by name, and which one is the entry."""

    computations: dict[str, dict[str, Instruction]]
    entry: str


@dataclasses.dataclass(frozen=True)
class Moved:
    """What one instruction moves in a run of the program.

    Args:
      name: of the instruction.
      source: the operation of the model that it comes from, `op_name`.
      kind: one of `KINDS`.
      bytes: in all of its runs.
      times: how often it runs.
      starts: whether it is a kernel: the end of an asynchronous one is not.
    """

    name: str
    source: str
    kind: str
    bytes: float
    times: int
    starts: bool


def read_program(text: str) -> Program:
    """Reads the text of an optimized module. Raises ValueError where it has no entry."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = computations.setdefault(head.group(2), {})
            entry = head.group(2) if head.group(1) else entry
        elif current is not None and (instruction := read_instruction(line)):
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation in this text")
    return Program(computations, entry)


def read_instruction(line: str) -> Instruction | None:
    """`  ROOT %name = f32[8,4]{1,0} fusion(%a, %b), kind=kLoop, calls=%c`; None for another line.

    >>> read_instruction("  %y = (f32[2]{0}, u8[0]{0}) custom-call(%x, %w), custom_call_target=\\"f\\"").operands
    ('x', 'w')
    """
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)", line)
    if not found:
        return None
    root, name, right = found.groups()
    shape, right = split_shape(right)
    opcode, _, right = right.partition("(")
    inside, rest = split_closing(right)
    called = re.findall(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)", rest)
    if branches := re.search(r"branch_computations=\{([^}]*)\}", rest):
        called += re.findall(r"[\w.\-]+", branches.group(1))
    if opcode == "parameter":
        return Instruction(name, opcode, read_shape(shape), (), (), inside, bool(root))
    operands = re.findall(r"%([\w.\-]+)", inside)
    return Instruction(name, opcode, read_shape(shape), tuple(operands), tuple(called), rest, bool(root))


def split_shape(text: str) -> tuple[str, str]:
    """The shape at the beginning, a tuple or one array, and what follows the space behind it."""
    if text.startswith("("):
        inside, rest = split_closing(text[1:])
        return inside, rest.lstrip()
    shape, _, rest = text.partition(" ")
    return shape, rest


def split_closing(text: str) -> tuple[str, str]:
    """What stands before the bracket that closes one opened before `text`, and what stands behind it."""
    depth = 1
    for found in re.finditer(r"[()]", text):
        depth += 1 if found.group() == "(" else -1
        if depth == 0:
            return text[: found.start()], text[found.end() :]
    return text, ""


def read_shape(text: str) -> tuple[Array, ...]:
    """
    >>> read_shape("f32[8,4]{1,0:T(8,128)S(1)}")
    (Array(dtype='f32', dims=(8, 4), tile=(8, 128), order=(1, 0), space=1),)
    """
    arrays = []
    for dtype, dims, layout in re.findall(r"(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?", text):
        order, _, more = layout.partition(":")
        tile = re.search(r"T\(([\d,]+)\)", more)
        space = re.search(r"S\((\d+)\)", more)
        tiles = numbers(tile.group(1)) if tile else ()
        arrays.append(Array(dtype, numbers(dims), tiles, numbers(order), int(space.group(1)) if space else 0))
    return tuple(arrays)


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def executed(
    program: Program, computation: str | None = None, times: int = 1
) -> Iterator[tuple[dict, Instruction, int]]:
    """(its computation, instruction, how often) for all that runs, through loops, branches and calls."""
    body = program.computations[computation or program.entry]
    for instruction in body.values():
        if instruction.opcode == "while":
            trips = int(instruction.attribute(r'known_trip_count":\{"n":"(\d+)"') or 1)
            for name in instruction.called:
                yield from executed(program, name, times * trips)
        elif instruction.opcode == "conditional":
            branches = [list(executed(program, name, times)) for name in instruction.called]
            yield from max(branches, key=lambda branch: sum(moved_bytes(program, i, b) * n for b, i, n in branch))
        elif instruction.opcode == "call":
            yield from executed(program, instruction.called[0], times)
        elif instruction.opcode not in FREE:
            yield body, instruction, times


def read_moved(program: Program) -> list[Moved]:
    """All instructions that run, in their order."""
    found = []
    for body, instruction, times in executed(program):
        begun = start_of(body, instruction)
        total = moved_bytes(program, instruction, body) * times
        source = begun.attribute(r'op_name="([^"]*)"')
        kind = kind_of(program, begun, body)
        found.append(Moved(instruction.name, source, kind, total, times, begun is instruction))
    return found


def start_of(body: dict[str, Instruction], instruction: Instruction) -> Instruction:
    """Of the end of an asynchronous instruction, its beginning; of any other, itself."""
    while instruction.opcode.endswith(("-done", "-update")):
        instruction = body[instruction.operands[0]]
    return instruction


def moved_bytes(program: Program, instruction: Instruction, body: dict[str, Instruction]) -> float:
    """Bytes of one run. The beginning of an asynchronous instruction reads its operands, its end writes its results."""
    if instruction.opcode.endswith("-done"):
        return instruction.bytes()
    operands = [body[name] for name in dict.fromkeys(instruction.operands)]
    if instruction.opcode == "slice-start":
        taken = next(array.size() for array in instruction.results if array.dims != operands[0].results[0].dims)
        return min(taken, operands[0].bytes())
    if instruction.opcode.endswith("-start"):
        return sum(operand.bytes() for operand in operands)
    if instruction.opcode == "fusion":
        return fused_bytes(program.computations[instruction.called[0]], instruction, body)
    if instruction.opcode in TAKES:
        return min(instruction.size(), operands[0].bytes()) + instruction.bytes()
    if instruction.opcode == "dynamic-update-slice":
        return 2 * body[instruction.operands[1]].bytes()
    return instruction.bytes() + sum(operand.bytes() for operand in operands)


def fused_bytes(inside: dict[str, Instruction], fusion: Instruction, body: dict[str, Instruction]) -> float:
    """Of one run of a fusion: what it takes of its operands, and what it writes."""
    parameters = {int(i.rest): i.name for i in inside.values() if i.opcode == "parameter"}
    users: dict[str, list[Instruction]] = {}
    for instruction in inside.values():
        for operand in dict.fromkeys(instruction.operands):
            users.setdefault(operand, []).append(instruction)
    read = 0.0
    for number, operand in enumerate(fusion.operands):
        whole = body[operand].bytes()
        read += min(whole, taken_bytes(users, parameters[number], whole))
    return read + written_bytes(inside, fusion)


def taken_bytes(users: dict[str, list[Instruction]], name: str, whole: float) -> float:
    """What the users of an array of `whole` bytes take of it: all of it, unless they only slice it or write into it."""
    total = 0.0
    for user in users.get(name, []):
        if user.opcode == "bitcast":
            total += taken_bytes(users, user.name, whole)
        elif user.opcode in TAKES and user.operands[0] == name:
            total += user.bytes()
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
            return whole
    return total


def written_bytes(inside: dict[str, Instruction], fusion: Instruction) -> float:
    """The results of a fusion, of those that are updated in place only the update."""
    root = next(i for i in inside.values() if i.is_root)
    if root.opcode != "tuple" and len(fusion.results) > 1:  # a reduction of several arrays at once
        return fusion.bytes()
    roots = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total = 0.0
    for result, made in zip(fusion.results, roots, strict=True):
        while made.opcode == "bitcast":
            made = inside[made.operands[0]]
        in_place = made.opcode == "dynamic-update-slice"
        total += min(result.bytes(), inside[made.operands[1]].bytes()) if in_place else result.bytes()
    return total


def opcodes_of(program: Program, instruction: Instruction) -> set[str]:
    """Its own, or those of all that it fuses or wraps."""
    if instruction.opcode != "fusion" and not instruction.opcode.startswith("async"):
        return {instruction.opcode.removesuffix("-start")}
    inner = program.computations[instruction.called[0]].values()
    return set().union(*(opcodes_of(program, i) for i in inner if i.opcode not in FREE))


def kind_of(program: Program, instruction: Instruction, body: dict[str, Instruction]) -> str:
    """One of `KINDS`; of a fusion the first of them that something in it is."""
    if instruction.opcode == "custom-call":
        return kind_of_call(instruction.attribute(r'custom_call_target="([^"]*)"'))
    opcodes = opcodes_of(program, instruction)
    if instruction.opcode in ("copy-start", "slice-start") and in_other_memory(instruction, body):
        return "transfer"
    for kind, some in (
        ("collective", set(COLLECTIVES)),
        ("convolution", {"convolution"}),
        ("matrix product", {"dot"}),
        ("Cholesky, triangular", {"cholesky", "triangular-solve"}),
        ("reduction", {"reduce", "reduce-window"}),
    ):
        if opcodes & some:
            return kind
    if opcodes <= MOVES | JOINS | PLACES | {"broadcast", "iota"}:
        if opcodes & PLACES:
            return "slice, gather, scatter"
        if opcodes & JOINS:
            return "concatenate, pad"
        return "layout copy" if opcodes & {"copy", "transpose"} else "element-wise"
    return "slice, gather, scatter" if opcodes & {"scatter", "sort", "gather"} else "element-wise"


def kind_of_call(target: str) -> str:
    """The kind of a library's function.

    >>> kind_of_call("__cudnn$convForward"), kind_of_call("cusolver_potrf_ffi"), kind_of_call("__cublas$lt$matmul")
    ('convolution', 'Cholesky, triangular', 'matrix product')
    """
    words = {
        "convolution": ("conv",),
        "matrix product": ("cublas", "gemm", "matmul", "dot"),
        "Cholesky, triangular": ("potrf", "cholesky", "trsm", "triangular", "getrf"),
        "reduction": ("norm", "softmax"),
    }
    return next((kind for kind, parts in words.items() if any(part in target.lower() for part in parts)), "other")


def in_other_memory(instruction: Instruction, body: dict[str, Instruction]) -> bool:
    """Whether a copy goes from one memory to another one, its layout aside."""
    source = body[instruction.operands[0]].results[0].space
    return any(array.space != source for array in instruction.results if array.dims)


def sum_by_kind(moved: Sequence[Moved]) -> dict[str, float]:
    """Bytes by kind, those that move something, most first."""
    total = Counter()
    for one in moved:
        total[one.kind] += one.bytes
    return {kind: n for kind, n in total.most_common() if n}


def copies(moved: Sequence[Moved], *, above_bytes: float) -> list[Moved]:
    """Layout copies that move more than so much in one run, most first."""
    found = [one for one in moved if one.kind == "layout copy" and one.bytes / one.times > above_bytes]
    return sorted(found, key=lambda one: -one.bytes)


def largest_argument(program: Program) -> float:
    """Bytes of the largest array that the program is given."""
    return max(i.size() for i in program.computations[program.entry].values() if i.opcode == "parameter")


def collectives(program: Program) -> dict[str, dict[str, float]]:
    """By opcode: how many run, and the bytes of what each device puts in."""
    found: dict[str, dict[str, float]] = {}
    for body, instruction, times in executed(program):
        opcode = instruction.opcode.removesuffix("-start")
        if opcode in COLLECTIVES:
            row = found.setdefault(opcode, {"count": 0, "bytes": 0})
            row["count"] += times
            row["bytes"] += times * sum(body[name].size() for name in instruction.operands)
    return found


def loops(program: Program) -> list[dict]:
    """Loops of the whole program: where they come from and how often they run, None where that is unknown."""
    found = [i for body in program.computations.values() for i in body.values() if i.opcode == "while"]
    trips = [i.attribute(r'known_trip_count":\{"n":"(\d+)"') for i in found]
    names = [i.attribute(r'op_name="([^"]*)"') for i in found]
    return [{"source": s, "times": int(n) if n else None} for s, n in zip(names, trips, strict=True)]


def leaves_device(program: Program) -> list[str]:
    """What calls the host: callbacks, infeeds, and whatever else sends."""
    found = set()
    for body in program.computations.values():
        for instruction in body.values():
            target = instruction.attribute(r'custom_call_target="([^"]*)"')
            if instruction.opcode.removesuffix("-done") in STARTS_HOST or re.search("callback|host", target, re.I):
                found.add(target or instruction.opcode)
    return sorted(found)


def dtypes(program: Program) -> set[str]:
    """Of all arrays of the program."""
    return {a.dtype for body in program.computations.values() for i in body.values() for a in i.results}
