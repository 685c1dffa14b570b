import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { assertDone, assertFails, canRun, type Result, ROOT, run, TINY_FLAGS, writeData } from "./process.ts";

/** A folder with data, and a run trained for one epoch. Made once; tests copy what they damage. */
let home = "";

function folderOf(name: string): string {
  return `${home}/${name}`;
}

/** A copy of the trained run under another name. */
function copyRun(name: string): string {
  const from = folderOf("trained");
  const to = folderOf(name);
  Deno.mkdirSync(`${to}/checkpoints`, { recursive: true });
  for (const file of ["config.json", "tokenizer.json", "metrics.csv", "train.log"]) {
    Deno.copyFileSync(`${from}/${file}`, `${to}/${file}`);
  }
  for (const { name: step } of Deno.readDirSync(`${from}/checkpoints`)) {
    Deno.mkdirSync(`${to}/checkpoints/${step}`);
    for (const file of ["model.safetensors", "optimizer.safetensors", "state.json"]) {
      Deno.copyFileSync(`${from}/checkpoints/${step}/${file}`, `${to}/checkpoints/${step}/${file}`);
    }
  }
  for (const link of ["best", "last"]) {
    Deno.symlinkSync(Deno.readLinkSync(`${from}/${link}`), `${to}/${link}`);
  }
  return to;
}

/** Content of every file of the run's checkpoints, to see that nothing harmed them. */
function checkpointBytes(runFolder: string): string {
  const parts: string[] = [];
  for (const link of ["best", "last"]) {
    for (const file of ["model.safetensors", "optimizer.safetensors", "state.json"]) {
      parts.push(Deno.readFileSync(`${runFolder}/${link}/${file}`).toBase64());
    }
  }
  return parts.join("\n");
}

function train(...flags: string[]): Promise<Result> {
  return run("train", [...TINY_FLAGS, ...flags]);
}

function cliTest(name: string, fn: () => Promise<void>): void {
  Deno.test({ name: `command line: ${name}`, ignore: !canRun, fn });
}

if (canRun) {
  Deno.test.beforeAll(async () => {
    home = Deno.makeTempDirSync();
    writeData(folderOf("data"));
    assertDone(await train("--data", folderOf("data"), "--run", folderOf("trained"), "--epochs", "1"));
  });
  Deno.test.afterAll(() => Deno.removeSync(home, { recursive: true }));
}

cliTest("training fills the run's folder and ends with the test BLEU and its signature", async () => {
  const names = [...Deno.readDirSync(folderOf("trained"))].map((entry) => entry.name).sort();
  const expected = ["best", "checkpoints", "config.json", "last", "metrics.csv", "samples", "tokenizer.json"];
  assertEquals(names, [...expected, "train.log"]);
  const log = Deno.readTextFileSync(folderOf("trained/train.log"));
  assertMatch(log, /\nBLEU\|nrefs:1\|case:mixed\|eff:no\|tok:zh\|smooth:exp\|version:\S+ = [\d.]+ .*\n$/);
  assertStringIncludes(log, "reference   ");
  const [header, first] = Deno.readTextFileSync(folderOf("trained/metrics.csv")).split("\n");
  assertEquals(header, "epoch,step,train_loss,dev_loss,dev_bleu,seconds,tokens_per_second");
  assertMatch(first ?? "", /^1,\d+,[\d.]+,[\d.]+,[\d.]+,[\d.]+,[\d.]+$/);
  const config = JSON.parse(Deno.readTextFileSync(folderOf("trained/config.json")));
  assertEquals([config.dModel, config.src, config.tgt, config.attn], [16, "en", "zh", "imp_flash_attn"]);
  await Promise.resolve();
});

cliTest("translate gives one line for each, empty for empty", async () => {
  const stdin = "I have two book\n\nthey buy three cat\r\nyou see one cup";
  const { stdout, stderr } = assertDone(await run("translate", ["--run", folderOf("trained")], { stdin }));
  assertEquals(stdout.split("\n").length, 5, stdout);
  assertEquals(stdout.split("\n")[1], "");
  assertEquals(stderr, "");
  const scored = assertDone(
    await run("translate", ["--checkpoint", folderOf("trained/last"), "--nbest", "2", "--scores"], { stdin }),
  );
  const lines = scored.stdout.trimEnd().split("\n");
  assertEquals(lines.map((line) => line.split("\t")[0]), ["1", "1", "2", "3", "3", "4", "4"]);
  for (const line of lines) assertMatch(line, /^\d\t-?\d+\.\d{4}\t/);
});

cliTest("evaluate scores a run the same twice, and in every attention form", async () => {
  const args = ["--run", folderOf("trained"), "--json", "--beam", "1"];
  const results = await Promise.all([
    run("evaluate", args),
    run("evaluate", [...args, "--attn", "dotscale"]),
    run("evaluate", [...args, "--attn_type", "flash_attn"]),
  ]);
  const scores = results.map((result) => JSON.parse(assertDone(result).stdout));
  assertEquals(Object.keys(scores[0]), ["bleu", "chrf", "signature"]);
  for (const other of scores.slice(1)) assert(Math.abs(scores[0].bleu - other.bleu) <= 1);
});

cliTest("evaluate scores files without a model", async () => {
  const [hyp, ref] = [folderOf("hyp.txt"), folderOf("ref.txt")];
  Deno.writeTextFileSync(hyp, "The cat sat on a mat .\nA dog\n");
  Deno.writeTextFileSync(ref, "the cat sat on the mat .\na dog\n");
  const cased = assertDone(await run("evaluate", ["--hyp", hyp, "--ref", ref, "--tok", "none", "--json"]));
  const lower = assertDone(
    await run("evaluate", ["--hyp", hyp, "--ref", ref, "--tok", "none", "--lowercase", "--json"]),
  );
  const { bleu, signature } = JSON.parse(lower.stdout);
  assertMatch(signature, /^nrefs:1\|case:lc\|eff:no\|tok:none\|smooth:exp\|version:/);
  assert(bleu > JSON.parse(cased.stdout).bleu);
  Deno.writeTextFileSync(ref, "the cat\n");
  assertFails(await run("evaluate", ["--hyp", hyp, "--ref", ref]), 1, /as many lines: there are 2 and 1/);
  assertFails(await run("evaluate", ["--hyp", hyp]), 1, /--hyp and --ref must be given together/);
  assertFails(await run("evaluate", ["--hyp", folderOf("none"), "--ref", ref]), 1, /none.*no such file/);
  Deno.writeTextFileSync(ref, "");
  assertFails(await run("evaluate", ["--hyp", hyp, "--ref", ref]), 1, /ref\.txt .*empty/);
});

cliTest("bad data is one line with exit code 1", async () => {
  const data = folderOf("bad");
  const attempt = async (prepare: () => void, message: RegExp): Promise<void> => {
    writeData(data);
    prepare();
    assertFails(await train("--data", data, "--run", folderOf("never")), 1, message);
  };
  const write = (text: string | Uint8Array): () => void => () =>
    typeof text === "string"
      ? Deno.writeTextFileSync(`${data}/train.tsv`, text)
      : Deno.writeFileSync(`${data}/train.tsv`, text);
  await attempt(() => Deno.removeSync(`${data}/dev.tsv`), /dev.*bad/);
  await attempt(write(""), /train\.tsv.*empty/);
  await attempt(write("a b\t甲乙\nonly one column\n"), /train\.tsv line 2 /);
  await attempt(write(new Uint8Array([97, 9, 98, 10, 97, 9, 255, 10])), /train\.tsv line 2 .*UTF-8/);
  await attempt(() => {
    Deno.removeSync(`${data}/train.tsv`);
    Deno.writeTextFileSync(`${data}/train.en`, "a\nb\n");
    Deno.writeTextFileSync(`${data}/train.zh`, "甲\n");
  }, /train\.(en|zh).*(2.*1|1.*2)/);
  assertFails(await train("--data", folderOf("nowhere"), "--run", folderOf("never")), 1, /nowhere/);
  await Promise.resolve();
});

cliTest("bad flags and settings are one line with exit code 1", async () => {
  const config = folderOf("config.jsonc");
  Deno.writeTextFileSync(config, '{ "d_model": 64 } // a wrong name');
  const cases: [string[], RegExp][] = [
    [["--atn", "dotscale"], /unknown option '--atn'.*Did you mean --attn\?/],
    [["--attn", "flash"], /one of dotscale, flash_attn, imp_flash_attn: current value is flash/],
    [["--preset", "smal"], /preset "smal".*did you mean small\?/],
    [["--d-model", "-8"], /dModel .*at least 8: current value is -8/],
    [["--epochs", "0"], /epochs .*at least 1: current value is 0/],
    [["--heads", "3"], /heads 3 as it must divide dModel: current dModel is 16/],
    [["--config", config], /key "d_model" in .*config\.jsonc.*did you mean dModel\?/],
    [["--config", folderOf("none.json")], /none\.json/],
    [["--init-from", folderOf("none/x")], /no such folder/],
    [["stray"], /too many arguments/],
  ];
  const results = await Promise.all(
    cases.map(([flags]) => train("--data", folderOf("data"), "--run", folderOf("never"), ...flags)),
  );
  results.forEach((result, i) => assertFails(result, 1, cases[i]?.[1] ?? /never/));
});

cliTest("a run and a checkpoint cannot both be asked for", async () => {
  for (const script of ["translate", "evaluate"] as const) {
    const result = await run(script, ["--run", "a", "--checkpoint", "b"], { stdin: "" });
    assertFails(result, 1, /Cannot combine --run with --checkpoint/);
  }
});

cliTest("a run is never overwritten silently", async () => {
  const before = checkpointBytes(folderOf("trained"));
  const data = ["--data", folderOf("data")];
  assertFails(
    await train(...data, "--run", folderOf("trained")),
    1,
    /this run exists: .*--resume.*--overwrite/,
  );
  assertFails(await train(...data, "--run", folderOf("data"), "--overwrite"), 1, /not the folder of a run/);
  const mismatch = ["--init-from", folderOf("trained"), "--overwrite", "--d-model", "32"];
  assertFails(
    await train(...data, "--run", folderOf("trained"), ...mismatch),
    1,
    /must have shape \[320, 32\]/,
  );
  assertEquals(checkpointBytes(folderOf("trained")), before);
  const copy = copyRun("overwritten");
  assertDone(await train(...data, "--run", copy, "--overwrite", "--epochs", "1", "--seed", "2"));
  assert(checkpointBytes(copy) !== before);
  const begun = assertDone(
    await train(...data, "--run", folderOf("begun"), "--init-from", copy, "--epochs", "1"),
  );
  assertMatch(begun.stdout, /trained \d+ steps/);
});

cliTest("a damaged or foreign checkpoint is one line with exit code 1", async () => {
  const translate = (path: string): Promise<Result> => run("translate", ["--run", path], { stdin: "x\n" });
  const truncated = copyRun("truncated");
  Deno.truncateSync(`${truncated}/best/model.safetensors`, 5000);
  assertFails(await translate(truncated), 1, /model\.safetensors as it is truncated: 5000 bytes of/);
  assertFails(await run("train", ["--run", truncated, "--resume"]), 1, /truncated/);

  const corrupt = copyRun("corrupt");
  const bytes = Deno.readFileSync(`${corrupt}/best/model.safetensors`);
  bytes.fill(0x55, 20, 40);
  Deno.writeFileSync(`${corrupt}/best/model.safetensors`, bytes);
  assertFails(await translate(corrupt), 1, /model\.safetensors as its header is damaged/);

  const foreign = copyRun("foreign");
  const tokenizer = JSON.parse(Deno.readTextFileSync(`${foreign}/tokenizer.json`));
  tokenizer.source.merges.pop();
  Deno.writeTextFileSync(`${foreign}/tokenizer.json`, JSON.stringify(tokenizer) + "\n");
  assertFails(await translate(foreign), 1, /another vocabulary/);
  assertFails(await translate(folderOf("nowhere")), 1, /nowhere as there is no such folder/);
});

cliTest("a run folder that cannot be written is one line with exit code 2", async () => {
  Deno.writeTextFileSync(folderOf("file"), "");
  const data = ["--data", folderOf("data")];
  assertFails(
    await train(...data, "--run", folderOf("file/below")),
    2,
    /Cannot write the run folder .*file\/below/,
  );
});

/** Runs training where no file may grow beyond `kib` KiB, which stands for a full disk. */
async function trainLimited(kib: number, ...flags: string[]): Promise<Result> {
  const shell = ["-c", `ulimit -f ${kib}; trap "" XFSZ; exec "$@"`, "bash", Deno.execPath()];
  const script = ["run", "--allow-ffi", "--allow-read", "--allow-write", "experiment/train.ts"];
  const { code, stderr } = await new Deno.Command("bash", {
    args: [...shell, ...script, ...flags],
    cwd: ROOT,
    env: { NO_COLOR: "1" },
  }).output();
  return { code, stdout: "", stderr: new TextDecoder().decode(stderr) };
}

cliTest("a full disk ends a run with one line, and harms no checkpoint", async () => {
  const limited = copyRun("limited");
  const before = checkpointBytes(limited);
  const flags = ["--run", limited, "--resume", "--epochs", "2"];
  // Writing fails within the tensors.
  const message = /Cannot write checkpoint .* the earlier checkpoints are as they were/;
  assertFails(await trainLimited(24, ...flags), 2, message);
  assertEquals(checkpointBytes(limited), before);
  Deno.writeTextFileSync(`${limited}/train.log`, "x".repeat(24 * 1024));
  assertFails(await trainLimited(24, ...flags), 2, /Cannot write .*train\.log as /);
  assertEquals(checkpointBytes(limited), before);
});

cliTest("a loss that is no number ends with exit code 3", async () => {
  const result = await train(
    ...["--data", folderOf("data"), "--run", folderOf("diverged"), "--lr", "1e30", "--warmup", "0"],
    ...["--clip-norm", "0", "--non-finite-limit", "2", "--epochs", "50"],
  );
  assertFails(result, 3, /Training diverged: .*2 steps in a row/);
});
