// Write with a model that `charlm export --to onnx` exported, in Node or in a browser (npm package onnxruntime-web).
//
//   node onnx_sample.mjs FOLDER [PROMPT] [CHARACTERS] [TEMPERATURE]
//
// In a page: import {write} from "./onnx_sample.mjs", and give it the library and a function that fetches a file.
const boundary = "\u{10ffff}"; // before and after each record, in models of records
export async function* write(ort, read, prompt = "", count = 200, temperature = 0.8) {
    const step = await ort.InferenceSession.create(await read("step.onnx"));
    const ids = JSON.parse(new TextDecoder().decode(await read("tokenizer.json"))).model.vocab;
    const symbols = Object.fromEntries(Object.entries(ids).map(([symbol, id]) => [id, symbol]));
    const [, ...names] = step.inputNames;
    const [, ...laterNames] = step.outputNames;
    let state = step.inputMetadata.slice(1).map(begin);
    const opening = [boundary, "\n", ...Object.keys(ids)].find((one) => one in ids);
    const start = opening === boundary ? opening + prompt : prompt || opening;
    const text = [...start]; // by code points, as the alphabet has them
    const length = text.length + count;
    let logits;
    for (let i = 0; i < length; i++) {
        if (i >= text.length) {
            text.push(symbols[draw(logits, temperature)]);
            if (text[i] === boundary) return;
            yield text[i];
        }
        const id = new ort.Tensor("int64", [BigInt(ids[text[i]])], [1, 1]);
        const given = Object.fromEntries(names.map((name, n) => [name, state[n]]));
        const found = await step.run({ids: id, ...given});
        logits = found.logits.data;
        state = laterNames.map((name) => found[name]);
    }

    // The state begins with zeros; a size that is a name is the number of texts, here 1.
    function begin({type, shape}) {
        const sizes = shape.map((size) => (typeof size === "string" ? 1 : size));
        const count = sizes.reduce((product, size) => product * size, 1);
        const zeros = type === "int64" ? new BigInt64Array(count) : new Float32Array(count);
        return new ort.Tensor(type, zeros, sizes);
    }
}

// Draw an id from the softmax of logits / temperature; temperature 0 takes the likeliest.
function draw(logits, temperature) {
    const most = Math.max(...logits);
    const weights = Array.from(logits, (logit) =>
        temperature > 0 ? Math.exp((logit - most) / temperature) : Number(logit === most),
    );
    let left = Math.random() * weights.reduce((sum, weight) => sum + weight, 0);
    const drawn = weights.findIndex((weight) => (left -= weight) < 0);
    return drawn < 0 ? weights.indexOf(Math.max(...weights)) : drawn;
}

if (globalThis.process?.argv[1]?.endsWith("onnx_sample.mjs")) {
    const {readFile} = await import("node:fs/promises");
    const ort = await import("onnxruntime-web");
    const [folder, prompt, count, temperature] = process.argv.slice(2);
    const read = (name) => readFile(`${folder}/${name}`);
    for await (const one of write(ort, read, prompt, Number(count ?? 200), Number(temperature ?? 0.8)))
        process.stdout.write(one);
    console.log();
}
