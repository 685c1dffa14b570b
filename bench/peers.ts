/**
 * Peers: other libraries on the same machine in the same run, by small Python programs under bench/peers/.
 *
 * @module
 */

import { fromFileUrl } from "@std/path";

/**
 * Runs `bench/peers/NAME` with `request` as JSON on its standard input and returns the JSON rows that it prints.
 *
 * @throws {Error} If python3 is not found, or the program fails: the last line of what it said.
 */
export async function runPeer(name: string, request: unknown): Promise<unknown[]> {
  const path = fromFileUrl(new URL(`./peers/${name}`, import.meta.url));
  let child: Deno.ChildProcess;
  try {
    child = new Deno.Command("python3", {
      args: ["-u", path],
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
  } catch (cause) {
    if (!(cause instanceof Deno.errors.NotFound)) throw cause;
    throw new Error(
      "Cannot run the peers: python3 is not found; install it, with torch, or leave --peers away",
      {
        cause,
      },
    );
  }
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(JSON.stringify(request)));
  await writer.close();
  const { code, stdout, stderr } = await child.output();
  const said = new TextDecoder().decode(stderr).trim().split("\n").at(-1) ?? "";
  if (code !== 0) {
    throw new Error(`Cannot run the peers in bench/peers/${name}: ${said || `exit code ${code}`}`);
  }
  const lines = new TextDecoder().decode(stdout).split("\n").filter((line) => line.startsWith("{"));
  return lines.map((line): unknown => JSON.parse(line));
}
