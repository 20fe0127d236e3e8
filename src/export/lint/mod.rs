//! What each inference server would refuse in an adapter, or take and silently get wrong.
