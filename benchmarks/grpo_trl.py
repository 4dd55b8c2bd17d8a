# mypy: ignore-errors
"""Worker of the GRPO benchmark: TRL's GRPOTrainer on the same tasks. Runs in TRL's own environment.

Settings that make it as fast as it gets on a CPU: float32 (bfloat16 is emulated), no gradient checkpointing, no
reference model, `transformers` generation (vLLM does not run here), micro-batches that fit the caches. For
conversations of several turns TRL has its tool loop, which wants replies that are tool calls, and `rollout_func`: here
the latter, turn by turn over the whole batch with the trainer's own generation, as that loop does it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.grpo_worker import Turns, letters, numeric, spread

_REPLY = "\u2063reply\u2063"


class Pace(TrainerCallback):
    """Makes the trainer wait for the driver between steps."""

    def __init__(self, turns: Turns, tokens: list[int], rewards: list[float]) -> None:
        self.turns, self.tokens, self.rewards = turns, tokens, rewards

    def on_train_begin(self, args, state, control, **kwargs):
        self.turns.began()

    def on_step_end(self, args, state, control, **kwargs):
        rows = float(len(self.tokens))
        figures = {"sampled_tokens": sum(self.tokens), "rows_trained": rows, "reward": sum(self.rewards) / rows}
        self.tokens.clear()
        self.rewards.clear()
        if not self.turns.done(**figures):
            # What follows would save a model that nobody wants.
            raise SystemExit(0)


def main() -> None:
    turns = Turns()
    case = turns.case
    torch.set_num_threads(case["threads"])
    tasks = [json.loads(line) for line in Path(case["tasks"]).read_text(encoding="utf-8").splitlines()]
    tasks = [tasks[i] for i in case["order"]]
    tokens: list[int] = []
    rewards: list[float] = []

    def judge(prompts, completions, completion_ids, answer, last_reply=None, env_tokens=None, **kwargs):
        replies = last_reply or [completion[0]["content"] for completion in completions]
        others = env_tokens or [0] * len(replies)
        tokens.extend(len(ids) - other for ids, other in zip(completion_ids, others, strict=True))
        if case["reward"] == "spread":
            found = [spread(reply) for reply in replies]
        else:
            judge_one = {"numeric": numeric, "letters": letters}[case["reward"]]
            found = [judge_one(reply, wanted) for reply, wanted in zip(replies, answer, strict=True)]
        rewards.extend(found)
        return found

    tokenizer = AutoTokenizer.from_pretrained(case["folder"])
    model = AutoModelForCausalLM.from_pretrained(case["folder"], dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=judge,
            args=arguments(case, folder, steps=len(tasks) // case["prompts"]),
            train_dataset=Dataset.from_list([{"prompt": t["messages"], "answer": t["answer"]} for t in tasks]),
            processing_class=tokenizer,
            callbacks=[Pace(turns, tokens, rewards)],
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
            if case["lora"]
            else None,
            rollout_func=conversations(tokenizer, tasks) if case["turns"] > 1 else None,
        )
        trainer.train()


def arguments(case, folder, *, steps):
    micro = case["trl_micro_batch"]
    return GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=case["prompts"] * case["generations"] // micro,
        num_generations=case["generations"],
        max_completion_length=case["max_tokens"],
        num_iterations=1,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        loss_type="dapo",
        scale_rewards="group",
        epsilon=0.2,
        learning_rate=case["learning_rate"],
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        max_steps=steps,
        shuffle_dataset=False,
        seed=case["seed"],
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
    )


def _key(messages):
    return json.dumps(messages, sort_keys=True)


def conversations(tokenizer, tasks):
    """A `rollout_func` in which a scripted user answers every reply."""
    scripts = {_key(task["messages"]): task["user_turns"] for task in tasks}
    end = tokenizer.eos_token_id

    def encode(messages):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return tokenizer.encode(text, add_special_tokens=False)

    def after_reply(content):
        """What stands between two replies, the end of the first one included."""
        chat = [{"role": "user", "content": "."}, {"role": "assistant", "content": _REPLY}]
        text = tokenizer.apply_chat_template(
            [*chat, {"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return tokenizer.encode(text.partition(_REPLY)[2], add_special_tokens=False)

    def rollout(prompts, trainer):
        prompt_ids = [encode(prompt) for prompt in prompts]
        completions = [[] for _ in prompts]
        masks = [[] for _ in prompts]
        script = [scripts[_key(prompt)] for prompt in prompts]
        for turn in range(len(script[0]) + 1):
            contexts = [ids + done for ids, done in zip(prompt_ids, completions, strict=True)]
            replies, _ = trainer._generate_single_turn(contexts, None, {}, trainer.num_generations)
            for row, reply in enumerate(replies):
                completions[row] += reply
                masks[row] += [1] * len(reply)
                if turn < len(script[row]):
                    delta = after_reply(script[row][turn])
                    delta = delta[1:] if reply[-1] == end else delta
                    completions[row] += delta
                    masks[row] += [0] * len(delta)
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": completions,
            "logprobs": None,
            "env_mask": masks,
            "env_tokens": [mask.count(0) for mask in masks],
            "last_reply": tokenizer.batch_decode(replies, skip_special_tokens=True),
        }

    return rollout


if __name__ == "__main__":
    main()
