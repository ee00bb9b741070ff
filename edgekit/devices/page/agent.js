// Runs one model file in this browser and posts what it saw: agent.py's job and result, whose
// meaning is written there. The inputs come as one block of bytes instead of an .npz; `arrays` of
// the job says what is where in it.

const VERSION = 1;
// As in agent.py; a sample lasts a thousand ticks of the clock that a page gets, 5 µs.
const [WARM_UP, POINT, POINTS, CHECK, SAMPLE] = [0.25, 16, 8, 0.25, 0.005];
const RUNTIMES = { onnx: loadOnnx, tflite: loadTflite };
// How long to wait for the browser's account of its memory, which may come with the next garbage
// collection only.
const MEMORY_MILLISECONDS = 3000;
// Threads of WebAssembly sleep without looking at messages, so that the question about memory,
// which goes to all of them, is never answered.
let tellsMemory = window.crossOriginIsolated && "measureUserAgentSpecificMemory" in performance;

main();

async function main() {
  const result = { agent: VERSION, passes: {}, error: null };
  try {
    const job = await (await ask("job.json")).json();
    // Kept open, so that the other end notices when this page is gone.
    window.alive = await ask("alive");
    await run(job, result);
  } catch (error) {
    result.error = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
  }
  say("Sending the result.");
  try {
    const sent = await fetch("result", { method: "POST", body: JSON.stringify(result) });
    say(sent.ok ? "Done. You may close this page." : `The result was refused (${sent.status}).`);
  } catch {
    say("The result could not be sent: the other end is gone.");
  }
}

async function run(job, result) {
  const threads = window.crossOriginIsolated ? job.threads : 1;
  if (threads > 1) tellsMemory = false;
  const memory = { start: await used() };
  const rows = new Rows(await readArrays(job), job.lengths, job.signature_inputs);
  const model = new Uint8Array(await (await ask(job.file)).arrayBuffer());
  if (job.accelerator === "webgpu") await needWebgpu();
  say("Loading the model.");
  const call = await RUNTIMES[job.format]({ ...job, model, threads }, memory, result);
  result.load_seconds = memory.load_seconds;
  delete memory.load_seconds;
  result.fingerprint = fingerprint(job, threads);

  const started = performance.now();
  await call(rows.feed([0]));
  result.first_run_seconds = seconds(started);
  for (const step of job.passes) {
    say(`Running: ${step.name}. Keep this page in front and the screen on.`);
    const work = { latency: measure, outputs }[step.kind];
    if (!work) throw new Error(`this page knows no pass '${step.kind}'`);
    result.passes[step.name] = await work(call, rows, step);
  }
  // The memory of WebAssembly grows and never shrinks: what there is now is the most there was.
  memory.peak = await used();
  result.memory = memory;
}

class Rows {
  constructor(arrays, buckets, order) {
    this.lengths = arrays.lengths ? Array.from(arrays.lengths.data) : null;
    this.arrays = arrays;
    this.buckets = buckets;
    this.order = order;
    this.count = arrays[order[0]].shape[0];
  }

  // Tokens per row of a call: the longest true length, or the bucket that holds it.
  width(indices) {
    if (!this.lengths) return null;
    const longest = Math.max(...indices.map((index) => this.lengths[index]));
    if (!this.buckets.length) return longest;
    return this.buckets.find((bucket) => bucket >= longest) ?? this.buckets.at(-1);
  }

  // {name: {data, shape}}; what is beyond a row's columns is zeros, and hidden by the mask.
  feed(indices, width = null) {
    width = width ?? this.width(indices);
    const feed = {};
    for (const name of this.order) {
      const { data, shape } = this.arrays[name];
      const row = product(shape.slice(1));
      const wide = width === null ? row : width;
      const cut = new data.constructor(indices.length * wide);
      indices.forEach((index, place) => {
        cut.set(data.subarray(index * row, index * row + Math.min(row, wide)), place * wide);
      });
      const rest = width === null ? shape.slice(1) : [width];
      feed[name] = { data: cut, shape: [indices.length, ...rest] };
    }
    return feed;
  }
}

async function outputs(call, rows, step) {
  const indices = step.rows ?? Array.from({ length: rows.count }, (_, index) => index);
  let found = [];
  const widths = new Set();
  for (let first = 0; first < indices.length; first += step.batch) {
    const chunk = indices.slice(first, first + step.batch);
    found.push(...split(await call(rows.feed(chunk, step.width))));
    widths.add(step.width ?? rows.width(chunk));
  }
  if (found.length && found[0].shape.length === 2 && rows.lengths) {
    found = align(found, rows, indices);
  }
  widths.delete(null);
  return { outputs: encode(found), widths: [...widths].sort((a, b) => a - b) };
}

// Per-token answers padded with zeros to the longest row, true tokens only.
function align(found, rows, indices) {
  const longest = Math.max(...rows.lengths);
  return found.map(({ data, shape: [tokens, wide] }, place) => {
    const length = Math.min(rows.lengths[indices[place]], tokens);
    const aligned = new Float32Array(longest * wide);
    aligned.set(data.subarray(0, length * wide));
    return { data: aligned, shape: [longest, wide] };
  });
}

// As agent.py's `measure`: warm up until the pace is steady, sample until the median is known.
async function measure(call, rows, step) {
  const chunks = [];
  for (let first = 0; first < step.rows.length; first += step.batch) {
    chunks.push(step.rows.slice(first, first + step.batch));
  }
  const feeds = chunks.map((chunk) => rows.feed(chunk));
  const widths = chunks.map((chunk) => rows.width(chunk) ?? 0);
  const repeats = await callsPerSample(call, feeds[0]);
  const [warm, steady] = await warmUp(call, feeds, widths, step.seconds * WARM_UP);
  const [samples, order] = [[], []];
  const begun = performance.now();
  let checked = begun;
  sampling: for (;;) {
    for (const at of shuffled(feeds.length)) {
      const started = performance.now();
      for (let times = 0; times < repeats; times += 1) await call(feeds[at]);
      samples.push(seconds(started) / repeats);
      order.push(at);
      if (seconds(begun) > step.seconds && samples.length >= feeds.length) break sampling;
    }
    if (seconds(checked) < CHECK) continue;
    checked = performance.now();
    if (samples.length >= 64 && spread(samples) <= step.precision) break;
  }
  return {
    samples,
    rows: order.map((at) => chunks[at][0]),
    widths: order.map((at) => widths[at]),
    batch: step.batch,
    repeats,
    warm_up_calls: warm,
    steady,
    overhead_seconds: null,
  };
}

async function callsPerSample(call, feed) {
  let best = Infinity;
  for (let times = 0; times < 5; times += 1) {
    const started = performance.now();
    await call(feed);
    best = Math.min(best, seconds(started));
  }
  return Math.max(1, Math.ceil(SAMPLE / Math.max(best, SAMPLE / 1000)));
}

// How often it called, and whether the pace settled: see agent.py's `warm_up`.
async function warmUp(call, feeds, widths, limit) {
  // Every bucket once, so that none is prepared inside a sample.
  for (const feed of new Map(widths.map((width, at) => [width, feeds[at]])).values()) {
    await call(feed);
  }
  const [times, seen] = [[], []];
  const begun = performance.now();
  let first = 0;
  while (seconds(begun) < limit) {
    for (let count = 0; count < POINT; count += 1) {
      const at = times.length % feeds.length;
      const started = performance.now();
      await call(feeds[at]);
      times.push(seconds(started));
      seen.push(widths[at]);
    }
    const points = curve(times, seen).slice(first);
    if (points.length < POINTS) continue;
    const [at, chance] = changePoint(points);
    if (chance > 0.05) return [times.length, true];
    first += at;
  }
  return [times.length, false];
}

function curve(times, widths) {
  const medians = new Map();
  for (const width of new Set(widths)) {
    medians.set(width, median(times.filter((_, at) => widths[at] === width)));
  }
  // A clock that is coarse may show no time at all.
  const shares = times.map((time, at) => time / (medians.get(widths[at]) || 1));
  const points = [];
  for (let at = 0; at + POINT <= shares.length; at += POINT) {
    points.push(median(shares.slice(at, at + POINT)));
  }
  return points;
}

// Pettitt 1979: where a series most likely changes level, and how likely that is by chance.
function changePoint(series) {
  const count = series.length;
  let [at, largest] = [0, 0];
  for (let split = 1; split < count; split += 1) {
    let sum = 0;
    for (const before of series.slice(0, split)) {
      for (const after of series.slice(split)) sum += Math.sign(before - after);
    }
    if (Math.abs(sum) > largest) [at, largest] = [split, Math.abs(sum)];
  }
  return [at, Math.min(1, 2 * Math.exp((-6 * largest ** 2) / (count ** 3 + count ** 2)))];
}

// The width of the median's 95 % interval as a share of its middle: agent.py's `median_interval`.
function spread(samples) {
  const sorted = [...samples].sort((a, b) => a - b);
  const [middle, reach] = [(sorted.length - 1) / 2, (1.96 * Math.sqrt(sorted.length)) / 2];
  const low = sorted[Math.max(0, Math.floor(middle - reach))];
  const high = sorted[Math.min(sorted.length - 1, Math.ceil(middle + reach))];
  return (high - low) / ((high + low) / 2 || 1);
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

function shuffled(count) {
  const order = Array.from({ length: count }, (_, at) => at);
  for (let at = count - 1; at > 0; at -= 1) {
    const other = Math.floor(Math.random() * (at + 1));
    [order[at], order[other]] = [order[other], order[at]];
  }
  return order;
}

async function loadOnnx(job, memory) {
  const webgpu = job.accelerator === "webgpu";
  const ort = await import(`./runtime/ort.${webgpu ? "webgpu" : "wasm"}.min.mjs`);
  ort.env.wasm.wasmPaths = new URL("runtime/", document.baseURI).href;
  ort.env.wasm.numThreads = job.threads;
  ort.env.logLevel = "error";
  memory.imported = await used();
  const started = performance.now();
  const session = await ort.InferenceSession.create(job.model, {
    executionProviders: [webgpu ? "webgpu" : "wasm"],
    graphOptimizationLevel: "all",
  });
  memory.load_seconds = seconds(started);
  memory.loaded = await used();
  const kinds = new Map(session.inputMetadata.map((input) => [input.name, input.type]));

  return async (feed) => {
    const tensors = {};
    for (const [name, { data, shape }] of Object.entries(feed)) {
      const kind = kinds.get(name);
      tensors[name] = new ort.Tensor(kind, converted(data, kind), shape);
    }
    const answer = (await session.run(tensors))[session.outputNames[0]];
    return { data: Float32Array.from(await answer.getData()), shape: answer.dims };
  };
}

function converted(data, kind) {
  if (kind === "int64") return BigInt64Array.from(data, BigInt);
  if (kind === "int32") return Int32Array.from(data);
  if (kind === "float32") return Float32Array.from(data);
  throw new Error(`this page gives no inputs of type ${kind}`);
}

async function loadTflite(job, memory, result) {
  const litert = await import("./runtime/litert.js");
  const webgpu = job.accelerator === "webgpu";
  await litert.loadLiteRt(new URL("runtime/", document.baseURI).href, {
    threads: job.threads > 1,
  });
  memory.imported = await used();
  const started = performance.now();
  const model = await litert.loadAndCompile(job.model, {
    accelerator: webgpu ? "webgpu" : "wasm",
    cpuOptions: { numThreads: job.threads },
  });
  memory.load_seconds = seconds(started);
  memory.loaded = await used();
  if (webgpu) {
    result.coverage = { fully_accelerated: model.isFullyAccelerated, on_cpu: [] };
  }
  const runners = new Map();
  for (const runner of Object.values(model.signatures)) {
    runners.set(job.lengths.length ? runner.getInputDetails()[0].shape[1] : null, runner);
  }
  if (!runners.size) runners.set(null, model);

  return async (feed) => {
    const parts = Object.entries(feed);
    const runner = runners.get(job.lengths.length ? parts[0][1].shape[1] : null);
    const details = runner.getInputDetails();
    const named = parts.every(([name]) => details.some((detail) => detail.name === name));
    const inputs = details.map((detail, at) => {
      const { data, shape } = named ? feed[detail.name] : parts[at][1];
      if (shape.some((size, axis) => size !== detail.shape[axis])) {
        throw new Error(
          `input ${detail.name} has the fixed shape ${[...detail.shape]} and this row ${shape}; ` +
            "export buckets of fixed lengths",
        );
      }
      return new litert.Tensor(converted(data, detail.dtype), shape);
    });
    const answers = await runner.run(inputs);
    const data = Float32Array.from(await answers[0].data());
    const shape = [...answers[0].type.layout.dimensions];
    for (const tensor of [...inputs, ...answers]) tensor.delete();
    return { data, shape };
  };
}

async function needWebgpu() {
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) {
    const secure = window.isSecureContext ? "" : " to a page that does not come by https";
    throw new Error(`this browser offers no WebGPU${secure}`);
  }
}

async function readArrays(job) {
  const bytes = await (await ask("inputs.bin")).arrayBuffer();
  const kinds = { int32: Int32Array, float32: Float32Array };
  return Object.fromEntries(
    job.arrays.map(({ name, dtype, shape, offset }) => {
      return [name, { data: new kinds[dtype](bytes, offset, product(shape)), shape }];
    }),
  );
}

// A call's answer as its rows.
function split({ data, shape: [count, ...shape] }) {
  const size = product(shape);
  return Array.from({ length: count }, (_, row) => {
    return { data: data.subarray(row * size, (row + 1) * size), shape };
  });
}

function encode(found) {
  const shape = found.length ? [found.length, ...found[0].shape] : [0];
  const values = new Float32Array(product(shape));
  found.forEach(({ data }, row) => values.set(data, row * data.length));
  const bytes = new Uint8Array(values.buffer);
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  }
  return { dtype: "float32", shape, data: btoa(text) };
}

function fingerprint(job, threads) {
  return {
    machine: "",
    system: "",
    // What a browser tells about the device: "Linux; Android 15; Pixel 8".
    cpu: (navigator.userAgent.match(/\(([^)]*)\)/) ?? ["", ""])[1],
    cores: navigator.hardwareConcurrency,
    features: features(),
    runtime: job.runtime,
    threads,
    accelerator: job.accelerator,
    browser: navigator.userAgent,
    clock_seconds: window.crossOriginIsolated ? 5e-6 : tick(),
  };
}

// Modules with one instruction each, as the feature is detected: valid where it is known.
function features() {
  const head = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10];
  const modules = {
    "wasm-simd": [10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11],
    "wasm-relaxed-simd": [15, 1, 13, 0, 65, 1, 253, 15, 65, 2, 253, 15, 253, 128, 2, 11],
  };
  const known = Object.keys(modules).filter((name) => {
    return WebAssembly.validate(new Uint8Array([...head, ...modules[name]]));
  });
  if (window.crossOriginIsolated) known.push("wasm-threads");
  if (navigator.gpu) known.push("webgpu");
  return known;
}

// The smallest step that the clock was seen to make, in seconds.
function tick() {
  let smallest = Infinity;
  for (let round = 0; round < 5; round += 1) {
    const before = performance.now();
    let after = before;
    while (after === before) after = performance.now();
    smallest = Math.min(smallest, after - before);
  }
  return smallest / 1000;
}

// Bytes that this page uses, its WebAssembly included, or null where the browser does not tell.
async function used() {
  if (!tellsMemory) return null;
  const told = performance.measureUserAgentSpecificMemory().then(
    (sample) => sample.bytes,
    () => null,
  );
  const late = new Promise((resolve) => setTimeout(resolve, MEMORY_MILLISECONDS, null));
  return Promise.race([told, late]);
}

async function ask(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`no ${name} (${answer.status})`);
  return answer;
}

function product(sizes) {
  return sizes.reduce((total, size) => total * size, 1);
}

function seconds(since) {
  return (performance.now() - since) / 1000;
}

function say(text) {
  document.getElementById("status").textContent = text;
}
