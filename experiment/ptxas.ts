/**
 * What ptxas reports with `-v`, read for the two faults that cost a kernel its speed without failing the compilation:
 * serialised warpgroup products or an ignored register request, and registers spilled to memory.
 *
 * @module
 */

/** The warnings that say that wgmma was serialised or setmaxnreg ignored. */
const FATAL = /\bC(7508|7510|7511|7514|7515)\b/;

/** A fault of one kernel. */
export interface KernelFault {
  /** Mangled name of the kernel, or "" where ptxas names none. */
  readonly symbol: string;
  /** What is wrong, in words. */
  readonly reason: string;
}

/**
 * Reads the faults out of the output of `nvcc -Xptxas -v`.
 *
 * @param output Standard error of the compiler.
 * @param spillsFail Whether spilled registers are a fault (in the attention kernels they are).
 */
export function kernelFaults(output: string, spillsFail: boolean): KernelFault[] {
  const faults: KernelFault[] = [];
  let entry = "";
  let architecture = "";
  for (const line of output.split("\n")) {
    const compiling = /Compiling entry function '([^']+)' for '([^']+)'/.exec(line);
    if (compiling !== null) [entry, architecture] = [compiling[1] ?? "", compiling[2] ?? ""];
    const properties = /Function properties for (\S+)/.exec(line);
    if (properties !== null) entry = properties[1] ?? "";
    if (FATAL.test(line)) {
      const named = /function '?([A-Za-z_$][\w$]*)'?/.exec(line);
      faults.push({ symbol: named?.[1] ?? entry, reason: line.replace(/^.*?\bC75/, "C75").trim() });
    }
    const spill = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    if (spillsFail && spill !== null && (Number(spill[1]) > 0 || Number(spill[2]) > 0)) {
      const reason = `spills registers (${spill[1]} bytes stored, ${spill[2]} bytes loaded, ${architecture})`;
      faults.push({ symbol: entry, reason });
    }
  }
  return faults;
}

/** The compiler's own warnings: its output without the lines of `ptxas -v`. */
export function withoutResourceLines(output: string): string {
  const kept = output.split("\n").filter((line) =>
    !/^ptxas info/.test(line) && !/^\s+\d+ bytes stack frame/.test(line) && line.trim() !== ""
  );
  return kept.length > 0 ? kept.join("\n") + "\n" : "";
}
