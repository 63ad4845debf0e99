"""Makes a Hugging Face folder of a GGUF file: weights as float32, tokenizer, chat template.

usage: gguf_to_hf.py FILE.gguf FOLDER

vLLM takes no GGUF by itself. The folder is written beside its place and put there at the end, so
one that is there is whole.
"""

import os
import shutil
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

source, name = os.path.split(os.path.abspath(sys.argv[1]))
folder = os.path.abspath(sys.argv[2])
partial = folder + ".partial"
shutil.rmtree(partial, ignore_errors=True)
os.makedirs(partial)

tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
if not tokenizer.chat_template:
    sys.exit(f"{name} has no chat template")
tokenizer.save_pretrained(partial)

model = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
weights = {key: tensor.contiguous().clone() for key, tensor in model.state_dict().items()}
if model.config.tie_word_embeddings:
    # One tensor under two names, of which the file holds the embeddings'.
    weights.pop("lm_head.weight", None)
save_file(weights, os.path.join(partial, "model.safetensors"), metadata={"format": "pt"})

config = model.config
# The weights are not as the GGUF stored them any more.
if hasattr(config, "quantization_config"):
    del config.quantization_config
config.dtype = "float32"
config.save_pretrained(partial)

shutil.rmtree(folder, ignore_errors=True)
os.rename(partial, folder)
