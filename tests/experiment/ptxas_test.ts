import { assertEquals, assertStringIncludes } from "@std/assert";
import { kernelFaults, withoutResourceLines } from "../../experiment/ptxas.ts";

const SPILL = `ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4fineP' for 'sm_90'
ptxas info    : Function properties for _Z4fineP
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
ptxas info    : Compiling entry function '_Z3badP' for 'sm_90'
ptxas info    : Function properties for _Z3badP
    96 bytes stack frame, 104 bytes spill stores, 96 bytes spill loads
ptxas info    : Used 255 registers
`;
const SERIAL =
  "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to " +
  "non wgmma instructions defining accumulator registers of a wgmma between start and end of the pipeline stage in the " +
  "function '_Z4wgmmaP'\n";

Deno.test("kernelFaults() finds spilled registers where they count", () => {
  const faults = kernelFaults(SPILL, true);
  assertEquals(faults.map((fault) => fault.symbol), ["_Z3badP"]);
  assertStringIncludes(faults[0]?.reason ?? "", "104 bytes stored, 96 bytes loaded, sm_90");
  assertEquals(kernelFaults(SPILL, false), []);
});

Deno.test("kernelFaults() finds serialised wgmma anywhere", () => {
  const faults = kernelFaults(SERIAL, false);
  assertEquals(faults.length, 1);
  assertEquals(faults[0]?.symbol, "_Z4wgmmaP");
  assertStringIncludes(faults[0]?.reason ?? "", "C7510");
});

Deno.test("withoutResourceLines() keeps the compiler's own warnings", () => {
  assertEquals(withoutResourceLines(SPILL), "");
  assertEquals(withoutResourceLines(SPILL + "a.cu(3): warning: unused\n"), "a.cu(3): warning: unused\n");
});
