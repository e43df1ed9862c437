"""Model families: one adapter a file. A new family is its file, an import and an entry of `ADAPTERS`."""

if __name__ != "prunekit.models":
    raise ImportError(
        "import prunekit.models: the top-level folder models/ is that package, "
        "and a second copy under another name would make a second set of classes"
    )

from prunekit.models.cohere import CohereVisionAdapter
from prunekit.models.deepseek_vl import DeepseekVLAdapter
from prunekit.models.gemma3 import Gemma3Adapter
from prunekit.models.glm4v import Glm4vAdapter
from prunekit.models.idefics3 import Idefics3Adapter
from prunekit.models.internvl import InternVLAdapter
from prunekit.models.llava import LlavaAdapter
from prunekit.models.llava_next import LlavaNextAdapter, LlavaNextVideoAdapter, LlavaOnevisionAdapter
from prunekit.models.mistral3 import Mistral3Adapter
from prunekit.models.molmo2 import Molmo2Adapter
from prunekit.models.ovis2 import Ovis2Adapter
from prunekit.models.paligemma import PaliGemmaAdapter
from prunekit.models.qwen_vl import Qwen2VLAdapter, Qwen3VLAdapter, Qwen25VLAdapter, Qwen35Adapter
from prunekit.models.video_llava import VideoLlavaAdapter
from prunekit.models.vipllava import VipLlavaAdapter

ADAPTERS = (
    LlavaAdapter,
    VipLlavaAdapter,
    LlavaNextAdapter,
    LlavaOnevisionAdapter,
    LlavaNextVideoAdapter,
    VideoLlavaAdapter,
    Qwen2VLAdapter,
    Qwen25VLAdapter,
    Qwen3VLAdapter,
    Qwen35Adapter,
    InternVLAdapter,
    Idefics3Adapter,
    PaliGemmaAdapter,
    Gemma3Adapter,
    Mistral3Adapter,
    CohereVisionAdapter,
    Ovis2Adapter,
    Glm4vAdapter,
    Molmo2Adapter,
    DeepseekVLAdapter,
)

__all__ = [
    "ADAPTERS",
    "CohereVisionAdapter",
    "DeepseekVLAdapter",
    "Gemma3Adapter",
    "Glm4vAdapter",
    "Idefics3Adapter",
    "InternVLAdapter",
    "LlavaAdapter",
    "LlavaNextAdapter",
    "LlavaNextVideoAdapter",
    "LlavaOnevisionAdapter",
    "Mistral3Adapter",
    "Molmo2Adapter",
    "Ovis2Adapter",
    "PaliGemmaAdapter",
    "Qwen2VLAdapter",
    "Qwen3VLAdapter",
    "Qwen25VLAdapter",
    "Qwen35Adapter",
    "VideoLlavaAdapter",
    "VipLlavaAdapter",
]
