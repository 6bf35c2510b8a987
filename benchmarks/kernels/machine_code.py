"""What a kernel's compiled code shows without a GPU: matmuls that are computed twice, and copies that never end.

Read from Triton's intermediate code and from the assembler's input for sm_90, where both were met; see
`benchmarks.kernels.compile_report`.
"""

import re


def doubled_products(ttgir: str) -> int:
    """How many of a kernel's warp-group matmuls are computed more than once.

    A layout says how many warps lie along M and N and what one instruction of a warp covers; where that is more than
    the tile has, warps repeat each other's work.
    """
    layouts = {
        name: [int(number) for number in (*warps.split(","), *shape.split(","))]
        for name, warps, shape in re.findall(
            r"(#\w+) = #ttg\.nvidia_mma<\{versionMajor = 3.*?warpsPerCTA = \[([\d, ]+)\].*?instrShape = \[([\d, ]+)\]",
            ttgir,
        )
    }
    has_duplicate_warps = 0
    for m, n, name in re.findall(r"ttng\.warp_group_dot [^\n]*-> tensor<(\d+)x(\d+)x\w+, (#\w+)>", ttgir):
        warps_m, warps_n, instr_m, instr_n, _ = layouts[name]
        has_duplicate_warps += warps_m * instr_m > int(m) or warps_n * instr_n > int(n)
    return has_duplicate_warps


def tma_copies(ptx: str) -> tuple[int, int]:
    """How many instructions copy by TMA or announce a copy, and how many of them are loose.

    A copy is waited for immediately, or by a turn of a loop. How many turns there are follows from the spans, so in
    front of a loop and in it a copy's predicate follows from something loaded; elsewhere it follows from the thread's
    number alone. Loose is what has no such predicate and no wait in the same straight line of code.
    """
    sources: dict[str, set[str]] = {}
    for written, read in re.findall(r"^\s*(?:@!?%\w+ )?[a-z][\w.:]*\s+(%\w+(?:\|%\w+)?), ([^;\n]*);", ptx, re.M):
        for register in written.split("|"):
            sources.setdefault(register, set()).update(re.findall(r"%\w+", read))
    loaded = set(re.findall(r"ld\.global\S* \{ (%\w+) \}", ptx))

    def is_loaded(predicate: str) -> bool:
        known, ahead = set(), [predicate]
        while ahead:
            register = ahead.pop()
            if register in loaded:
                return True
            if register not in known:
                known.add(register)
                ahead += sources.get(register, ())
        return False

    copies = loose = unawaited = 0
    for line in ptx.splitlines():
        found = re.search(r"(?:@(%p\d+) )?(mbarrier\.arrive\.expect_tx|cp\.async\.bulk\.tensor)", line)
        announced = found is not None and found[2].startswith("mbarrier")
        if announced or re.match(r"\$L__BB|.*\bbra\S*\s+\$L", line):
            loose, unawaited = loose + unawaited, 0
        if found:
            copies += 1
            unawaited += found[1] is None or not is_loaded(found[1])
        elif "mbarrier.try_wait" in line:
            unawaited = 0
    return copies, loose + unawaited
