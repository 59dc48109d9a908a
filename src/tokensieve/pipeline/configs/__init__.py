"""What each verb is told, a dataclass a verb, and which of it says what work it is. Light: help and parsing import no more."""
