import { assert, assertEquals, assertMatch } from "@std/assert";
import { assertDone, canRun, command, type Result, run, TINY_FLAGS, writeData } from "./process.ts";

const EPOCHS = "20";

/** Weights, moments and metrics (without the times) of a finished run. */
function outcome(folder: string): string[] {
  const bytes = ["model", "optimizer"].map((name) =>
    Deno.readFileSync(`${folder}/last/${name}.safetensors`).toBase64()
  );
  const rows = Deno.readTextFileSync(`${folder}/metrics.csv`).trimEnd().split("\n");
  return [...bytes, ...rows.map((row) => row.split(",").slice(0, 5).join(","))];
}

/** Starts a run and sends it a signal as soon as it has printed `line`. */
async function interrupt(args: readonly string[], line: string, signal: Deno.Signal): Promise<Result> {
  const child = command("train", args).spawn();
  const errors = new Response(child.stderr).text();
  let stdout = "";
  let sent = false;
  for await (const text of child.stdout.pipeThrough(new TextDecoderStream())) {
    stdout += text;
    if (!sent && stdout.includes(line)) {
      sent = true;
      child.kill(signal);
    }
  }
  const { code } = await child.status;
  return { code, stdout, stderr: await errors };
}

Deno.test({
  name: "a run stopped, killed or limited and then resumed equals an uninterrupted one, bit for bit",
  ignore: !canRun,
  fn: async () => {
    const home = Deno.makeTempDirSync();
    try {
      writeData(`${home}/data`);
      const hard = ["--dropout", "0.1", "--accumulate", "2"];
      const flags = [...TINY_FLAGS, ...hard, "--data", `${home}/data`, "--epochs", EPOCHS, "--run"];
      const resume = async (name: string): Promise<string[]> => {
        assertDone(await run("train", ["--run", `${home}/${name}`, "--resume"]));
        return outcome(`${home}/${name}`);
      };
      assertDone(await run("train", [...flags, `${home}/whole`]));
      const whole = outcome(`${home}/whole`);
      assertEquals(whole.length, 3 + Number(EPOCHS));

      const limited = assertDone(await run("train", [...flags, `${home}/limited`, "--max-steps", "7"]));
      assertMatch(limited.stdout, /trained 7 steps .*step limit/);
      assertEquals(await resume("limited"), whole, "after a step limit within an epoch");

      const killed = await interrupt([...flags, `${home}/killed`], "epoch 2/", "SIGKILL");
      assert(killed.code !== 0);
      assertEquals(await resume("killed"), whole, "after SIGKILL");

      const stopped = await interrupt([...flags, `${home}/stopped`], "epoch 1/", "SIGTERM");
      assertEquals(stopped.code, 143, stopped.stderr);
      assertMatch(stopped.stdout, /stopped by SIGTERM after step \d+: go on with --run/);
      assertEquals(await resume("stopped"), whole, "after SIGTERM");
    } finally {
      Deno.removeSync(home, { recursive: true });
    }
  },
});
