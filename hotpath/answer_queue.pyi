"""The answers of one connection of the direct door, in the order of its requests."""

class DoorState:
    """The part of a door that its answers need. For compiled callers."""

class AnswerQueue:
    """The sending half of a connection. For compiled callers, and for the transport."""

    def pause_writing(self) -> None:
        """The peer does not read its answers: read no more of its requests."""

    def resume_writing(self) -> None:
        """The peer has read everything."""
