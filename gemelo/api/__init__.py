"""Python API: what a user of the library holds, a `Model`, and how it is loaded."""

from gemelo.api.load import load as load
from gemelo.api.model import Message as Message
from gemelo.api.model import Model as Model
from gemelo.api.model import PromptLike as PromptLike
