"""Places of the registers of a kernel in those of a warp. PTX has as many registers as it likes;
those that are never needed at the same time share a place, so that a warp fits into a cache."""

# In the order in which the machine writes them.
SPECIAL = (
    *("%tid.x", "%laneid", "%ntid.x", "%ctaid.x", "%ctaid.y", "%ctaid.z"),
    *("%nctaid.x", "%nctaid.y", "%nctaid.z", "%cluster_ctarank"),
)


def places(operations: list, bits_of) -> tuple[dict[str, int], int]:
    """A place for each register, and how many bytes there are."""
    first, last = lifetimes(operations)
    found = {name: 128 * i for i, name in enumerate(SPECIAL)}
    free: dict[int, list[int]] = {}
    end = 128 * len(SPECIAL)
    ending: dict[int, list[str]] = {}
    starting: dict[int, list[str]] = {}
    for register, at in first.items():
        if register not in found:
            starting.setdefault(at, []).append(register)
            ending.setdefault(last[register], []).append(register)
    for at in range(len(operations)):
        for register in starting.get(at, ()):
            size = 32 if bits_of(register) == 1 else 4 * bits_of(register)
            if free.get(size):
                found[register] = free[size].pop()
            else:
                found[register] = end
                end += size
        for register in ending.get(at, ()):
            size = 32 if bits_of(register) == 1 else 4 * bits_of(register)
            free.setdefault(size, []).append(found[register])
    return found, end


def lifetimes(operations: list) -> tuple[dict[str, int], dict[str, int]]:
    """The first and the last operation between which each register may hold something."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    numbers: dict[str, int] = {}
    labels = {o.target: i for i, o in enumerate(operations) if o.name == "label"}
    leaders = {0, *labels.values()}
    leaders |= {i + 1 for i, o in enumerate(operations) if o.name in ("bra", "ret", "trap")}
    starts = sorted(i for i in leaders if i < len(operations))
    blocks = []  # [start, end, used before written, written, followers, live at the end]
    for start, end in zip(starts, [*starts[1:], len(operations)], strict=True):
        used = written = 0
        for i in range(start, end):
            o = operations[i]
            names = [(w, r) for w, r in o.operands if isinstance(r, str)]
            if o.guard:
                names.append((False, o.guard))
            for w, register in sorted(names):
                bit = 1 << numbers.setdefault(register, len(numbers))
                first.setdefault(register, i)
                last[register] = i
                if w and not o.guard:
                    written |= bit
                elif not written & bit:
                    used |= bit  # a guarded write keeps what was there
        tail = operations[end - 1]
        followers = [labels[tail.target]] if tail.name == "bra" else []
        if not (tail.name in ("bra", "ret", "trap") and not tail.guard) and end < len(operations):
            followers.append(end)
        blocks.append([start, end, used, written, followers, 0])
    live_in = {b[0]: b[2] for b in blocks}
    changed = True
    while changed:
        changed = False
        for b in reversed(blocks):
            out = 0
            for follower in b[4]:
                out |= live_in[follower]
            if out != b[5]:
                b[5], changed = out, True
                live_in[b[0]] = b[2] | (out & ~b[3])
    names = list(numbers)
    for start, end, *_, out in blocks:
        for mask, at in ((live_in[start], start), (out, end - 1)):
            while mask:
                register = names[(mask & -mask).bit_length() - 1]
                mask &= mask - 1
                first[register] = min(first[register], at)
                last[register] = max(last[register], at)
    return first, last
