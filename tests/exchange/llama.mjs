// What llama.cpp makes of a file: the ids of a text, the probabilities after each, and a greedy text.
import {getLlama} from "node-llama-cpp";

const {file, text, prompt, count, size} = JSON.parse(process.argv[2]);
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: 1});
const model = await llama.loadModel({modelPath: file});
const exact = {experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32"};
const context = await model.createContext({contextSize: size, threads: 1, ...exact});
const sequence = context.getSequence();

const ids = model.tokenize(text);
const asked = ids.map((id) => [id, {generateNext: {probabilities: true}}]);
const found = await sequence.controlledEvaluate(asked);
const probabilities = found.map(({next}) =>
    [...next.probabilities].sort(([one], [other]) => one - other).map(([, p]) => p),
);

await sequence.clearHistory();
const greedy = [];
for await (const id of sequence.evaluate(model.tokenize(prompt), {temperature: 0})) {
    greedy.push(id);
    if (greedy.length === count) break;
}
const written = greedy.map((id) => model.detokenize([id])).join("");
const strange = model.tokenize("\u20ac"); // a character that no alphabet here has
console.log(JSON.stringify({ids, back: model.detokenize(ids), probabilities, written, strange}));
await llama.dispose();
