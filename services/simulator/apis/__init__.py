"""Five image APIs as their documentation describes them, on one port: openai, dashscope, fal, replicate, runpod."""
