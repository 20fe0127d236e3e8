//! Chat templates and what is learnt of a conversation.
