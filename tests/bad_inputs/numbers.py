"""Numbers out of range, of every class that has one."""

from __future__ import annotations

from tests.bad_inputs.row import Bad, part, setting, thinned

OBJECTIVES, FUNCTIONAL = "lightning_opd.objectives", "lightning_opd.functional"
CALLBACKS = "lightning_opd.callbacks"

PROFILER = "lightning.pytorch.profilers.PyTorchProfiler"


def functional(name: str, init_args: dict[str, object]) -> dict[str, object]:
    """Return a part of the mathematics."""
    return {"class_path": f"{FUNCTIONAL}.{name}", "init_args": init_args}


def teacher(*says: str, **init_args: object) -> Bad:
    """Return a teacher with one wrong argument."""
    return setting(
        f"model.teachers.math={part('lightning_opd.teachers.LocalTeacher', path='WORLD/math', **init_args)}", *says
    )


def callback(name: str, says: str, **init_args: object) -> Bad:
    """Return a callback with one wrong number."""
    return setting(f"trainer.callbacks+={part(f'{CALLBACKS}.{name}', **init_args)}", says)


def gradient(says: str, **init_args: object) -> Bad:
    """Return a policy gradient with one wrong argument."""
    return setting(f"model.objective={part(f'{OBJECTIVES}.PolicyGradient', **init_args)}", says)


def matching(divergence: str, says: str) -> Bad:
    """Return distribution matching with a wrong divergence."""
    text = f'{{"class_path": "{OBJECTIVES}.DistributionMatching", "init_args": {{"divergence": {divergence}}}}}'
    return setting(f"model.objective={text}", says)


DATA = [
    setting("data.prompts_per_batch=0", "`data.prompts_per_batch` must be at least 1, got 0"),
    setting("data.prompts_per_batch=-4", "`data.prompts_per_batch` must be at least 1, got -4"),
    setting("data.samples_per_prompt=0", "`data.samples_per_prompt` must be at least 1, got 0"),
    setting("data.updates_per_batch=0", "`data.updates_per_batch` must be at least 1, got 0"),
    setting("seed_everything=-1", "`seed_everything`", "got -1"),
    setting("data.sampling.temperature=-1", "`temperature` must be 0 (greedy) or positive, got -1"),
    setting("data.sampling.temperature=.nan", "`temperature`", "got nan"),
    setting("data.sampling.temperature=.inf", "`temperature`", "got inf"),
    setting("data.sampling.top_p=0", "`top_p` must lie in (0, 1], got 0"),
    setting("data.sampling.top_p=1.5", "`top_p` must lie in (0, 1], got 1.5"),
    setting("data.sampling.max_new_tokens=0", "`max_new_tokens` must be at least 1, got 0"),
    setting("data.sampling.max_turns=0", "`max_turns` must be at least 1, got 0"),
    setting("data.sampling.max_episode_tokens=0", "`max_episode_tokens` must be at least 1, got 0"),
    setting("data.sampling.max_episode_tokens=3", "they exceed `data.sampling.max_episode_tokens` of 3 tokens"),
    setting("data.sampling.vocab_size=0", "`vocab_size`", "got 0"),
    setting("data.sampling.stop_token_ids=[-1]", "stop_token_ids`", "-1"),
    setting("data.sampling.stop_token_ids=[99999]", "stop_token_ids`", "99999"),
    setting("data.evaluation.batch_size=0", "batch_size`", "got 0"),
    setting("data.evaluation.num_prompts=0", "evaluation.num_prompts`", "got 0"),
    setting("data.evaluation.num_prompts=-3", "evaluation.num_prompts`", "got -3"),
    setting("data.evaluation.num_prompts={math: -1}", "evaluation.num_prompts`", "-1"),
    setting("data.evaluation.num_validation_prompts=-1", "num_validation_prompts`", "got -1"),
    setting("data.evaluation.splits=[]", "evaluation.splits`"),
    setting("data.evaluation.modes=[]", "evaluation.modes`"),
    setting(
        f"data.off_policy_responses.source={part('lightning_opd.collection.TeacherResponses')}",
        "`fraction`",
        "got 2",
        more=("--data.off_policy_responses.fraction=2",),
    ),
    setting(f"data.engine={part('lightning_opd.rollouts.InProcessEngine', batch_size=0)}", "`batch_size`", "got 0"),
]

STUDENT = [
    setting("model.student.lora.rank=0", "`student.lora.rank` must be at least 1, got 0", "Leave `lora` out"),
    setting("model.student.lora.alpha=0", "`student.lora.alpha`", "got 0"),
    setting("model.student.lora.alpha=.nan", "`student.lora.alpha`", "got nan"),
    setting("model.student.lora.dropout=1", "`student.lora.dropout` must lie in [0, 1), got 1"),
    setting("model.student.lora.dropout=.nan", "`student.lora.dropout` must lie in [0, 1), got nan"),
    setting("model.student.lora.targets=[]", "`student.lora.targets`"),
    setting("model.student.lora.targets=[nothing]", "no module `nothing`", "q_proj"),
    setting("model.student.lora.targets=(", "`student.lora.targets`", "regular expression"),
    setting("model.student.lora.adapter_name=a.b", "`student.lora.adapter_name`", "a.b"),
    setting("model.student.dtype=float33", "`dtype` must name a torch dtype", "float33"),
    setting("model.student.dtype=int8", "`dtype`", "int8"),
    setting("model.student.attn_implementation=flesh", "`attn_implementation: flesh`"),
    setting("model.student.random_init={model_type: qwen3}", "`student` needs either `path` or `random_init`"),
]

OPTIMISER = [
    setting("model.optimizer.init_args.lr=-1", "`model.optimizer`", "Invalid learning rate: -1"),
    setting("model.optimizer.init_args.lr=.nan", "lr"),
    setting("model.optimizer.init_args.lr=small", "lr", "small"),
    setting("model.optimizer.init_args.momentum=-1", "Invalid momentum value: -1"),
    setting(f"model.optimizer={part('torch.optim.AdamW', lr='small')}", "`model.optimizer.lr`", "small"),
    setting(f"model.optimizer={part('torch.optim.AdamW', lr=-0.1)}", "Invalid learning rate: -0.1"),
    setting(f"model.optimizer={part('torch.optim.AdamW', betas=[2.0, 0.9])}", "beta", "2.0"),
    setting(f"model.optimizer={part('torch.optim.AdamW', eps=-1)}", "Invalid epsilon value: -1"),
    setting(f"model.optimizer={part('torch.optim.AdamW', weight_decay=-1)}", "Invalid weight_decay value: -1"),
    setting(f"model.lr_scheduler={part('lightning_opd.modules.WarmupCosine', warmup_steps=-1)}", "warmup_steps"),
    setting(f"model.lr_scheduler={part('lightning_opd.modules.WarmupCosine', final_fraction=2)}", "final_fraction"),
    setting(
        f"model.lr_scheduler={part('torch.optim.lr_scheduler.StepLR', step_size=0)}", "`model.lr_scheduler` cannot work"
    ),
    setting(f"model.critic={part('lightning_opd.modules.Critic', lr=-1)}", "`lr` of the critic must be positive"),
    setting(f"model.critic={part('lightning_opd.modules.Critic', lr='.nan')}", "`lr` of the critic"),
]

TEACHERS = [
    teacher("`temperature` of teacher", "must be positive, got 0", temperature=0),
    teacher("`temperature` of teacher", "must be positive, got nan", temperature=".nan"),
    teacher("`batch_size` of teacher", "got 0", batch_size=0),
    teacher("`top_k` of teacher", "got 0", top_k=0),
    teacher("`dtype`", "int8", dtype="int8"),
    teacher("`revision: main`", "is a folder", revision="main"),
]

CALLBACK = [
    callback("LastCheckpoint", "`every_n_steps` must be at least 1, got 0", every_n_steps=0),
    callback("RolloutTable", "`num_samples` must be at least 1, got 0", num_samples=0),
    callback("RolloutTable", "`every_n_batches` must be at least 1, got -1", every_n_batches=-1),
    callback("FormatErrorMask", "`warn_above` is a fraction between 0 and 1, got 2", warn_above=2),
    callback("HackDetector", "`span` must be at least 1 rollout batch, got 0", span=0),
    callback("HackDetector", "`reward_drop` is a fraction between 0 and 1, got 0", reward_drop=0),
    callback("OutcomeReward", "`coef` must not be negative, got -1", coef=-1),
    callback("OutcomeReward", "`coef` must be a finite number, got inf", coef=".inf"),
    callback("OutcomeReward", "`coef` must be a finite number, got nan", coef=".nan"),
    callback("OutcomeReward", "`final_from`", final_from=2),
    callback("FirstSpecialTokenMask", "`tokens` names ['<none>']", tokens=["<none>"]),
]

OBJECTIVE = [
    gradient("`clip_low`", policy_loss=functional("policy_losses.PPOClip", {"clip_low": 0})),
    gradient(
        "max_ratio",
        policy_loss=functional("policy_losses.TruncatedImportance", {"max_ratio": 0}),
    ),
    gradient(
        "`max_weight` must be at least 1",
        off_policy=functional("off_policy.TruncatedImportance", {"max_weight": 0.5}),
    ),
    gradient(
        "`low` and `high`",
        off_policy=functional("off_policy.MaskedImportance", {"low": 2}),
    ),
    gradient(
        "limit",
        log_ratio_transform=functional("log_ratio_transforms.Clip", {"limit": -1}),
    ),
    gradient(
        "limit",
        log_ratio_transform=functional("log_ratio_transforms.Clip", {"limit": ".nan"}),
    ),
    gradient("discount", estimator=functional("advantages.LogRatioToGo", {"discount": 2})),
    gradient("maths", teacher_log_ratio_transforms={"maths": None}),
    matching(
        part(f"{FUNCTIONAL}.top_k.TopK", k=0, divergence=functional("divergences.ReverseKL", {})),
        "`k` must be at least 1, got 0",
    ),
    matching(part(f"{FUNCTIONAL}.divergences.JensenShannon", weight=2), "weight"),
    matching(part(f"{FUNCTIONAL}.divergences.JensenShannon", weight=".nan"), "weight"),
]

TRAINER = [
    setting("trainer.accumulate_grad_batches=0", "accumulate_grad_batches"),
    setting("trainer.max_steps=-5", "max_steps"),
    setting("trainer.devices=0", "devices"),
    setting("trainer.devices=-3", "devices"),
    setting("trainer.precision=33", "precision", "33"),
    setting("trainer.gradient_clip_val=-1", "gradient_clip_val"),
    setting("trainer.log_every_n_steps=-1", "log_every_n_steps"),
    setting("trainer.limit_train_batches=-1", "limit_train_batches"),
    setting("trainer.limit_val_batches=2.5", "limit_val_batches"),
    setting("trainer.val_check_interval=1.5", "val_check_interval"),
    setting("trainer.val_check_interval=0", "val_check_interval"),
    setting("trainer.num_nodes=0", "num_nodes"),
    setting("trainer.max_time=soon", "'soon'", "DD:HH:MM:SS"),
    setting("trainer.accelerator=gpuu", "gpuu"),
    setting("trainer.accelerator=gpu", "gpu"),
    setting("trainer.profiler=fast", "`profiler`", "simple"),
    setting("trainer.profiler=xla", "`trainer.profiler`", "torch_xla"),
    setting(f"trainer.profiler={part(PROFILER, bogus=1)}", "`trainer.profiler` names a class", "profiler.help"),
    setting(
        f"trainer.strategy={part('lightning.pytorch.strategies.DDPStrategy', bogus=1)}",
        "`trainer.strategy` names a class",
    ),
    setting("trainer.check_val_every_n_epoch=0", "check_val_every_n_epoch"),
    setting("trainer.max_epochs=-2", "max_epochs", more=("--trainer.max_steps=-1",)),
]

TABLE = thinned([*DATA, *STUDENT, *OPTIMISER, *TEACHERS, *CALLBACK, *OBJECTIVE, *TRAINER], 10)
