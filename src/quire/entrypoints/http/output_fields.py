"""The fields of a request about what the text of its answer must look like."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from quire.errors import InvalidRequestError
from quire.types.structured_outputs import MAX_CHOICES, MAX_GRAMMAR_CHARACTERS, StructuredOutputsParams

_Text = Annotated[str, Field(max_length=MAX_GRAMMAR_CHARACTERS)]


class JsonSchemaFormat(BaseModel):
    """A schema for the answer."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, populate_by_name=True)

    name: Annotated[str, Field(max_length=256)] | None = None
    description: Annotated[str, Field(max_length=65_536)] | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="Answers always follow the schema; accepted for compatibility.")


class ResponseFormat(BaseModel):
    """OpenAI's way to say it. A structural tag has its own fields beside `type`."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(BaseModel):
    """vLLM's way to say it: exactly one of the first six."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

    json_value: dict[str, Any] | bool | str | None = Field(None, alias="json", description="A JSON schema.")
    regex: _Text | None = None
    choice: Annotated[list[_Text], Field(min_length=1, max_length=MAX_CHOICES)] | None = None
    grammar: _Text | None = Field(None, description="A grammar in Lark's notation.")
    json_object: bool | None = None
    structural_tag: dict[str, Any] | _Text | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: Annotated[str, Field(max_length=256)] | None = None


def read_structure(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None
) -> StructuredOutputsParams | None:
    """What the answer must look like, None for free text.

    Raises:
        InvalidRequestError: Both fields constrain it, or one of them breaks a rule.
    """
    by_format = None if response_format is None else _from_format(response_format)
    if structured_outputs is None:
        return by_format
    if by_format is not None:
        raise InvalidRequestError(
            "response_format and structured_outputs exclude each other",
            hint="send one of them",
            param="structured_outputs",
        )
    given = structured_outputs.model_dump(by_alias=True, exclude_none=True)
    if given.get("json_object") is False:
        del given["json_object"]
    return StructuredOutputsParams(**given) if given else None


def structure_names(response_format: ResponseFormat | None) -> dict[str, str]:
    """The request's names of the fields of `StructuredOutputsParams`, where they are others."""
    if response_format is None:
        return {}
    return {
        "structured_outputs.json": "response_format.json_schema.schema",
        "structured_outputs.json_object": "response_format",
        "structured_outputs.structural_tag": "response_format",
    }


def _from_format(wanted: ResponseFormat) -> StructuredOutputsParams | None:
    if wanted.json_schema is not None and wanted.type != "json_schema":
        raise InvalidRequestError(
            f'response_format has a json_schema and the type "{wanted.type}"',
            hint='the type of a schema is "json_schema"',
            param="response_format.type",
        )
    if wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return StructuredOutputsParams(json_object=True)
    if wanted.type == "structural_tag":
        return StructuredOutputsParams(structural_tag={"type": wanted.type, **(wanted.model_extra or {})})
    schema = wanted.json_schema.json_schema if wanted.json_schema else None
    if schema is None:
        raise InvalidRequestError(
            "response_format of the type json_schema needs a schema",
            hint='send {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}',
            param="response_format.json_schema.schema",
        )
    return StructuredOutputsParams(json=schema)
