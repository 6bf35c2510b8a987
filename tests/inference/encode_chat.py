"""The prompt of a conversation, as `LoadedModel.chat` encodes and checks it before its first token."""

from brine.data.sequence import EncodedDocument
from brine.inference.chat import chat_prompt, check_token_ids_match_content
from brine.inference.load import LoadedModel


def encode_chat(loaded: LoadedModel, messages) -> EncodedDocument:
    prompt = loaded.encode(chat_prompt(messages)[0])
    check_token_ids_match_content(messages, loaded.tokenizer)
    return prompt
