/**
 * The device that the tests run on: `deno test --allow-ffi -- --device cuda`; auto without it.
 *
 * @module
 */

import { chooseDevice, Context, type Device } from "../ffi/mod.ts";

/** The device that the command line names, or the one that `auto` stands for. */
export function testDevice(): Device {
  const at = Deno.args.indexOf("--device");
  const name = at < 0 ? "auto" : Deno.args[at + 1];
  if (name === "cpu" || name === "cuda") return name;
  if (name === "auto") return chooseDevice();
  throw new RangeError(`Cannot test on device "${name}": it must be auto, cpu or cuda`);
}

/** A context on the device under test. */
export function openTestContext(): Context {
  return new Context({ device: testDevice() });
}
