// The fields of the form, under the names that the API gives them.

export const CHOICES = {
  reasoning_gym: "Generated tasks (reasoning-gym)",
  dataset: "Questions from files",
  dialogue: "Dialogues from files",
};

// `only`: shown for those kinds of tasks. An empty field is left to the platform's default.
export const FIELDS = [
  { name: "experiment_name", label: "Name", help: "For people." , value: "sums" },
  { name: "model", label: "Model", help: "A built-in name, a Hugging Face id, or the id of a finished job." },
  { name: "environment.type", label: "Tasks", help: "Where the model practises.", choices: ["reasoning_gym", "dataset", "dialogue"] },
  { name: "environment.dataset", label: "Generator", help: "Name of a reasoning-gym data set, for example chain_sum or gcd.", value: "chain_sum", only: ["reasoning_gym"] },
  { name: "environment.paths", label: "Files", help: "On the platform's machine, separated by commas. Dialogues need messages and user_turns.", kind: "list", only: ["dataset", "dialogue"] },
  { name: "max_steps", label: "Steps", help: "Empty: one pass over the tasks.", value: "30", kind: "number" },
  { name: "prompts_per_step", label: "Tasks a step", help: "Different questions in every step.", value: "8", kind: "number" },
  { name: "num_generations", label: "Tries a task", help: "Replies to each question, compared with each other.", value: "8", kind: "number" },
  { name: "max_completion_length", label: "Longest reply, tokens", help: "A longer reply is cut.", value: "24", kind: "number" },
  { name: "learning_rate", label: "Learning rate", help: "1e-5 for all weights, about 5e-4 with lora.", value: "1e-5", kind: "number" },
  { name: "beta", label: "KL coefficient", help: "0: no reference model; the KL is not measured.", value: "0", kind: "number" },
  { name: "num_eval_prompts", label: "Held-out tasks", help: "Asked before and after training; 0: none.", value: "48", kind: "number" },
  { name: "eval_steps", label: "Steps between evaluations", help: "Empty: at the start and the end only.", kind: "number" },
  { name: "priority", label: "Priority", help: "Higher starts earlier, 0 to 100.", value: "1", kind: "number" },
];

/** The request: typed text by field name, and JSON merged over it. What is not a number goes as it was typed, so that
 *  the platform refuses it by name. Raises when the JSON cannot be read. */
export function configOf(typed, json) {
  const config = {};
  for (const [name, text] of Object.entries(typed)) {
    const value = valueOf(FIELDS.find((f) => f.name === name).kind, text.trim());
    if (value !== undefined) put(config, name.split("."), value);
  }
  return merge(config, parsed(json));
}

function valueOf(kind, text) {
  if (text === "") return undefined;
  if (kind === "list") return text.split(",").map((part) => part.trim()).filter(Boolean);
  return kind === "number" && Number.isFinite(Number(text)) ? Number(text) : text;
}

function put(target, [first, ...rest], value) {
  if (rest.length) put((target[first] ??= {}), rest, value);
  else target[first] = value;
}

function parsed(json) {
  if (!json.trim()) return {};
  const found = JSON.parse(json);
  if (found === null || typeof found !== "object" || Array.isArray(found)) throw new Error("the JSON must be an object");
  return found;
}

function merge(base, over) {
  for (const [name, value] of Object.entries(over)) {
    const both = [base[name], value].every((v) => v !== null && typeof v === "object" && !Array.isArray(v));
    base[name] = both ? merge(base[name], value) : value;
  }
  return base;
}
