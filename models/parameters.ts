/**
 * Parameters: views into a few flat buffers, so that one kernel updates all and one reduces the gradient norm.
 *
 * @module
 */

import { Arena, cast, type Context, randomUniform, type Tensor } from "../ffi/mod.ts";

const ALIGNMENT = 64; // elements: keeps every view on the 16 bytes that kernels ask for, in all dtypes

/** How a parameter starts. */
export type Initial = { kind: "zeros" } | { kind: "ones" } | { kind: "uniform"; bound: number };

/** Which flat buffer. */
export type StateBuffer = "master" | "m" | "v";

/** Named arrays, one for each parameter, row-major. */
export type NamedArrays = Record<string, Float32Array<ArrayBuffer>>;

/** One parameter: a view of the weights, and later of the gradients. */
export class Parameter {
  /** Name within the model, e.g. `encoder.0.self.qkv.weight`. */
  readonly name: string;
  /** Sizes. */
  readonly shape: readonly number[];
  /** How it starts. */
  readonly initial: Initial;
  #data: Tensor | null = null;
  #gradient: Tensor | null = null;
  #fresh = true;

  /** Made by {@linkcode ParameterSet.declare}. */
  constructor(name: string, shape: readonly number[], initial: Initial) {
    this.name = name;
    this.shape = shape;
    this.initial = initial;
  }

  /** Elements. */
  get size(): number {
    return this.shape.reduce((total, size) => total * size, 1);
  }

  /** Whether weight decay acts on it: matrices, not biases and gains. */
  get decays(): boolean {
    return this.shape.length > 1;
  }

  /**
   * The weights, in the context's type.
   *
   * @throws {ReferenceError} Before the set is initialised.
   */
  get data(): Tensor {
    if (this.#data === null) {
      throw new ReferenceError(`Cannot use parameter ${this.name} before it is initialised`);
    }
    return this.#data;
  }

  /**
   * The gradient, f32.
   *
   * @throws {ReferenceError} Before {@linkcode ParameterSet.prepareTraining}.
   */
  get gradient(): Tensor {
    if (this.#gradient === null) {
      throw new ReferenceError(`Cannot train parameter ${this.name}: it has no gradient`);
    }
    return this.#gradient;
  }

  /** Whether to add to the gradient: false for the first writer of a step, which overwrites what it held. */
  claim(): boolean {
    const accumulate = !this.#fresh;
    this.#fresh = false;
    return accumulate;
  }

  /** Makes the next {@linkcode claim} the first of a step. */
  renew(): void {
    this.#fresh = true;
  }

  /** Ties the views, for ParameterSet. */
  bind(views: { data?: Tensor; gradient?: Tensor }): void {
    this.#data = views.data ?? this.#data;
    this.#gradient = views.gradient ?? this.#gradient;
  }
}

/** The flat buffers of training: as long as the master weights. */
export interface TrainingBuffers {
  /** f32 [n]: gradients. */
  gradient: Tensor;
  /** f32 [n]: first moments. */
  m: Tensor;
  /** f32 [n]: second moments. */
  v: Tensor;
}

/**
 * All parameters of a model. Declared first; {@linkcode initialise} then lays them out: those that decay in front, the
 * others behind, so that each kind is one range.
 */
export class ParameterSet implements Disposable {
  /** Where the buffers lie. */
  readonly context: Context;
  readonly #arena: Arena;
  readonly #parameters: Parameter[] = [];
  readonly #offsets = new Map<Parameter, number>();
  #weights: Tensor | null = null;
  #master: Tensor | null = null;
  #training: TrainingBuffers | null = null;
  #decaying = 0;
  #size = 0;

  /** An empty set. */
  constructor(context: Context) {
    this.context = context;
    this.#arena = new Arena(context, { chunkBytes: 1 });
  }

  /** Adds a parameter, before {@linkcode initialise}. Names must differ. */
  declare(name: string, shape: readonly number[], initial: Initial): Parameter {
    if (this.#parameters.some((other) => other.name === name)) {
      throw new TypeError(`Cannot declare parameter ${name} twice`);
    }
    const parameter = new Parameter(name, shape, initial);
    this.#parameters.push(parameter);
    return parameter;
  }

  /** The parameters in the order of their declaration. */
  get all(): readonly Parameter[] {
    return this.#parameters;
  }

  /** Elements of a flat buffer, gaps included. */
  get size(): number {
    return this.#size;
  }

  /** Elements of the range in front on which weight decay acts. */
  get decaying(): number {
    return this.#decaying;
  }

  /** [n] in the context's type: what the forward pass reads. */
  get weights(): Tensor {
    return this.#live(this.#weights);
  }

  /** f32 [n]: what the optimizer updates; the same tensor as `weights` where those are f32. */
  get master(): Tensor {
    return this.#live(this.#master);
  }

  /** Lays the parameters out and gives them their first values, which depend on the seed alone, not on the device. */
  initialise(seed: number): void {
    const ordered = [
      ...this.#parameters.filter((parameter) => parameter.decays),
      ...this.#parameters.filter((parameter) => !parameter.decays),
    ];
    for (const parameter of ordered) {
      this.#offsets.set(parameter, this.#size);
      this.#size += Math.ceil(parameter.size / ALIGNMENT) * ALIGNMENT;
      if (parameter.decays) this.#decaying = this.#size;
    }
    const master = this.#arena.zeros([this.#size], "f32");
    this.#master = master;
    this.#weights = this.context.dtype === "f32" ? master : this.#arena.tensor([this.#size]);
    this.#parameters.forEach((parameter, site) => {
      parameter.bind({ data: this.#view(this.weights, parameter) });
      const target = this.#view(master, parameter);
      const { initial } = parameter;
      if (initial.kind === "ones") target.write(new Float32Array(parameter.size).fill(1));
      if (initial.kind === "uniform") {
        randomUniform(target, -initial.bound, initial.bound, BigInt(seed), site);
      }
    });
    this.#publish();
  }

  /** The buffers of training; taken and zeroed at the first call. */
  prepareTraining(): TrainingBuffers {
    if (this.#training === null) {
      const zeros = (): Tensor => this.#arena.zeros([this.#size], "f32");
      this.#training = { gradient: zeros(), m: zeros(), v: zeros() };
      for (const parameter of this.#parameters) {
        parameter.bind({ gradient: this.#view(this.#training.gradient, parameter) });
      }
    }
    return this.#training;
  }

  /** Begins a step: the first gradient of each parameter overwrites, the next ones add. */
  renew(): void {
    for (const parameter of this.#parameters) parameter.renew();
  }

  /** A copy of one buffer on the host, by parameter; waits. */
  read(buffer: StateBuffer): NamedArrays {
    const flat = this.#buffer(buffer).floats();
    return this.#slices(flat);
  }

  /** Gradients on the host, by parameter; waits. For tests and inspection. */
  readGradients(): NamedArrays {
    return this.#slices(this.prepareTraining().gradient.floats());
  }

  /**
   * Replaces one buffer.
   *
   * @throws {TypeError} If a parameter is missing, or one is unknown.
   * @throws {RangeError} If one has another size.
   */
  write(buffer: StateBuffer, arrays: Readonly<Record<string, Float32Array>>): void {
    for (const name of Object.keys(arrays)) {
      if (!this.#parameters.some((parameter) => parameter.name === name)) {
        throw new TypeError(`Cannot load parameter ${name}: the model has none of that name`);
      }
    }
    const flat = new Float32Array(this.#size);
    for (const parameter of this.#parameters) {
      const values = arrays[parameter.name];
      if (values === undefined) {
        throw new TypeError(`Cannot load parameter ${parameter.name} as it is missing`);
      }
      if (values.length !== parameter.size) {
        throw new RangeError(
          `Cannot load parameter ${parameter.name} as it must hold ${parameter.size} numbers ` +
            `[${parameter.shape}]: it holds ${values.length}`,
        );
      }
      flat.set(values, this.#offsets.get(parameter));
    }
    this.#buffer(buffer).write(flat);
    if (buffer === "master") this.#publish();
  }

  /** Frees all buffers. Idempotent. */
  [Symbol.dispose](): void {
    this.#arena[Symbol.dispose]();
  }

  #buffer(buffer: StateBuffer): Tensor {
    return buffer === "master" ? this.master : this.prepareTraining()[buffer];
  }

  #slices(flat: Float32Array<ArrayBuffer>): NamedArrays {
    return Object.fromEntries(this.#parameters.map((parameter) => {
      const offset = this.#offsets.get(parameter) ?? 0;
      return [parameter.name, flat.slice(offset, offset + parameter.size)];
    }));
  }

  /** Rounds the master weights to what the forward pass reads. */
  #publish(): void {
    if (this.weights !== this.master) cast(this.weights, this.master);
  }

  #view(flat: Tensor, parameter: Parameter): Tensor {
    return flat.slice(this.#offsets.get(parameter) ?? 0, parameter.size).reshape(...parameter.shape);
  }

  #live(tensor: Tensor | null): Tensor {
    if (tensor === null) throw new ReferenceError("Cannot use parameters before they are initialised");
    return tensor;
  }
}
