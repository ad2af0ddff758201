"""What a model's answer says: reasoning, content and tool calls, read from its text while it is written.

`formats` describes how models write them, as data; `parser` reads any of them, a piece at a time; `grammar` makes a
grammar from the same descriptions, so that a model can write nothing else. Pure: text in, events out.
"""
