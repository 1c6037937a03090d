"""Arguments and methods of transformers' `Trainer` and of PEFT, and what replaces them here."""

_DATA = "pass batches, as those of minibert.train.data, to fit"
_EVALUATION = "pass evaluation=Evaluation(batches=…, every=…) to fit"
_CHECKPOINTS = "pass checkpoints=Checkpoints(folder=…) to fit"
_METRICS = "Trainer.evaluate returns losses and accuracies; compute others in a callback of fit"
_STEPS = "pass steps to fit, and the number of epochs to the function of minibert.train.data"

BOTH = {
    "args": "pass each setting to Trainer, adamw, schedule or fit",
    "batch_size": "pass it to the function of minibert.train.data that makes the batches",
    "callback": "pass a list of functions, callbacks=[…], to fit",
    "callbacks": "pass them to fit",
    "compute_metrics": _METRICS,
    "data_collator": _DATA,
    "epochs": _STEPS,
    "eval_data": _EVALUATION,
    "eval_dataset": _EVALUATION,
    "eval_steps": _EVALUATION,
    "learning_rate": "pass it to the optimizer, such as adamw",
    "max_grad_norm": "pass it to adamw",
    "max_steps": "pass steps to fit",
    "num_epochs": _STEPS,
    "num_train_epochs": _STEPS,
    "output_dir": _CHECKPOINTS,
    "per_device_train_batch_size": "pass the batch_size of all devices to the function of "
    "minibert.train.data that makes the batches",
    "save_steps": _CHECKPOINTS,
    "train_dataset": _DATA,
    "weight_decay": "pass it to adamw",
}
FIT = {
    **BOTH,
    "callback": "pass a list of functions, callbacks=[…]",
    "dataset": "pass batches as data",
    "logging_steps": "pass log_every",
    "resume": "pass checkpoints=Checkpoints(folder=…, resume=True)",
    "resume_from_checkpoint": "pass checkpoints=Checkpoints(folder=…, resume=True)",
    "train_dataset": "pass batches as data",
}
TRAINER = {
    **BOTH,
    "compute_loss_func": "pass an objective",
    "gradient_accumulation_steps": "pass accumulate",
    "gradient_checkpointing": "pass remat",
    "label_smoothing_factor": "pass minibert.train.weighted(objective, label_smoothing=…)",
    "lora_config": "pass lora",
    "loss": "pass an objective",
    "optimizers": "pass optimizer, in which a schedule is part",
    "peft_config": "pass lora",
    "processing_class": "the functions of minibert.train.data take the tokenizer",
    "tokenizer": "the functions of minibert.train.data take the tokenizer",
}
ADAMW = {
    "beta1": "pass b1",
    "beta2": "pass b2",
    "betas": "pass b1 and b2",
    "epsilon": "pass eps",
    "lr": "pass learning_rate, a number or a schedule",
    "mask": "biases and normalisations do not decay; for other choices use optax.adamw",
}
LORA = {
    "alpha": "pass lora_alpha",
    "dropout": "pass lora_dropout",
    "ensure_weight_tying": "not implemented",
    "inference_mode": "Trainer trains an adapter, and merge and attach use it, without a mode",
    "layer_replication": "not implemented",
    "loftq_config": "not implemented",
    "peft_type": "the type is always LoRA",
    "rank": "pass r",
    "revision": "pass it to load_adapter or load_merged",
    "target_parameters": "not implemented",
}
METHODS = {
    "fit": "call minibert.train.fit(trainer, batches, steps=…)",
    "predict": "call trainer.model, or a pipeline with it",
    "save_model": "call trainer.model.save_pretrained(folder)",
    "save_state": "pass checkpoints=Checkpoints(folder=…) to minibert.train.fit",
    "train": "call minibert.train.fit(trainer, batches, steps=…)",
}
