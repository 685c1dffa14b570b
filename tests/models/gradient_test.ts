import { assertGreater, assertLess } from "@std/assert";
import { ATTENTION_FORMS } from "../../ffi/mod.ts";
import { type ModelConfig, Trainer, Transformer } from "../../models/mod.ts";
import { openTestContext } from "../context.ts";
import { batchOf, generator, randomPairs, TINY } from "./fixtures.ts";
import { referenceLoss } from "./reference.ts";

const SMOOTHING = 0.1;
const LENGTHS = [3, 1, 6, 4];

/** A model whose gains and biases are not the ones and zeros that would hide an error. */
function perturbed(config: ModelConfig, context: ReturnType<typeof openTestContext>): Transformer {
  const model = new Transformer(context, config, 3);
  const random = generator(5);
  const weights = model.parameters.read("master");
  for (const values of Object.values(weights)) {
    for (let i = 0; i < values.length; i++) values[i] = (values[i] ?? 0) + 0.2 * (random() - 0.5);
  }
  model.parameters.write("master", weights);
  return model;
}

const CASES: readonly [string, ModelConfig][] = [
  ...ATTENTION_FORMS.map((attention): [string, ModelConfig] => [attention, { ...TINY, attention }]),
  ["tied to the output", { ...TINY, tied: "target", encoderLayers: 2 }],
  ["all tied", { ...TINY, tied: "all", sourceVocabulary: 19 }],
];

for (const [name, config] of CASES) {
  for (const pad of [null, 2]) {
    const layout = pad === null ? "packed" : "padded";
    Deno.test(`the training step has the float64 model's loss and gradients: ${name}, ${layout}`, () => {
      using context = openTestContext();
      using model = perturbed(config, context);
      using trainer = new Trainer({ model, schedule: { kind: "constant", rate: 0 }, smoothing: SMOOTHING });
      const pairs = randomPairs(11, LENGTHS, config);
      const exact = context.dtype === "f32";
      trainer.step(batchOf(pairs, pad));

      const weights = Object.fromEntries(
        Object.entries(model.parameters.read("master")).map((
          [key, values],
        ) => [key, Float64Array.from(values)]),
      );
      const packed = batchOf(pairs);
      const loss = (): number => referenceLoss(config, weights, packed, SMOOTHING);
      assertLess(Math.abs(trainer.readMetrics().loss - loss()), exact ? 1e-5 : 2e-2);

      const gradients = model.parameters.readGradients();
      const random = generator(17);
      for (const [key, values] of Object.entries(weights)) {
        const gradient = gradients[key] ?? new Float32Array();
        const scale = Math.max(1e-3, ...gradient.map(Math.abs));
        for (let sample = 0; sample < 2; sample++) {
          const i = Math.floor(random() * values.length);
          const value = values[i] ?? NaN;
          const h = 1e-5;
          values[i] = value + h;
          const above = loss();
          values[i] = value - h;
          const below = loss();
          values[i] = value;
          const error = Math.abs((above - below) / (2 * h) - (gradient[i] ?? NaN)) / scale;
          // In 16 bits a ReLU near zero may open or close: more than rounding in one element.
          assertLess(error, exact ? 1e-4 : 0.2, `${key}[${i}]: off by ${error} of the largest`);
        }
      }
    });
  }
}

for (const attention of ATTENTION_FORMS) {
  Deno.test(`gradients under dropout are those of the masked loss: ${attention}`, () => {
    using context = openTestContext();
    using model = perturbed({ ...TINY, attention }, context);
    const schedule = { kind: "constant", rate: 0 } as const;
    using trainer = new Trainer({
      model,
      schedule,
      smoothing: SMOOTHING,
      dropout: 0.3,
      seed: 5,
      accumulate: 2,
    });
    const batches = [batchOf(randomPairs(11, LENGTHS)), batchOf(randomPairs(12, LENGTHS))];
    const start = trainer.state();
    /** The loss of step 1, whose masks are always the same, at weights moved along the gradient. */
    const lossAt = (distance: number, direction: Record<string, Float32Array>): number => {
      const weights = Object.fromEntries(
        Object.entries(start.weights).map(([key, values]) => [
          key,
          values.map((value, i) => value + distance * (direction[key]?.[i] ?? NaN)),
        ]),
      );
      trainer.load({ ...start, weights });
      trainer.step(batches);
      return trainer.readMetrics().loss;
    };
    trainer.step(batches);
    const { gradientNorm, loss } = trainer.readMetrics().steps[0] ?? { gradientNorm: NaN, loss: NaN };
    const gradients = model.parameters.readGradients();
    const exact = context.dtype === "f32";
    const h = exact ? 2e-3 : 2e-2;
    const slope = (lossAt(h, gradients) - lossAt(-h, gradients)) / (2 * h);
    assertLess(Math.abs(slope / gradientNorm ** 2 - 1), exact ? 5e-3 : 0.1);
    const plain = referenceLoss(model.config, start.weights, batchOf(randomPairs(11, LENGTHS)), SMOOTHING);
    assertGreater(Math.abs(loss - plain), 1e-3, "dropout acts");
  });
}
