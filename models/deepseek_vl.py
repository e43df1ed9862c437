"""DeepSeek-VL (1.3B; the 7B form with two encoders is `deepseek_vl_hybrid`, which runs without an adapter)."""

from prunekit.adapter import ModelAdapter

__all__ = ["DeepseekVLAdapter"]


class DeepseekVLAdapter(ModelAdapter):
    """SigLIP, an aligner of two layers, Llama."""

    model_types = ("deepseek_vl",)
    encoder = "vision_model"
    connector = "aligner"
