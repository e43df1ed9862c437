"""GLM-4.1V, GLM-4.5V (a mixture of experts) and GLM-4.6V."""

from prunekit.models.qwen_vl import Qwen2VLAdapter

__all__ = ["Glm4vAdapter"]


class Glm4vAdapter(Qwen2VLAdapter):
    """GLM-4V: an encoder like Qwen2-VL's, whose patches are merged by a convolution before the projector."""

    model_types = ("glm4v", "glm4v_moe", "glm46v")
