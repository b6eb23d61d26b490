"""What all algorithms share: finding the program, running it with progress and a cancel button, telling its errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qgis.core import (
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterNumber,
    QgsRasterLayer,
)

from .program import SOME_FAILED, ProgramError, check_program, find_program, progress_of, run_program

SHOWN_OF_ERROR = 12  # last lines of what a failed program said
DOUBLE, INTEGER = QgsProcessingParameterNumber.Type.Double, QgsProcessingParameterNumber.Type.Integer
ADVANCED = QgsProcessingParameterDefinition.Flag.FlagAdvanced


class GeoodAlgorithm(QgsProcessingAlgorithm):
    """Algorithm that runs one command of geood; `program_setting` returns where the program was said to be."""

    NAME = TITLE = HELP = ""

    def __init__(self, program_setting: Callable[[], str]) -> None:
        super().__init__()
        self.program_setting = program_setting

    def createInstance(self) -> GeoodAlgorithm:
        """Return a new algorithm of the same kind."""
        return type(self)(self.program_setting)

    def name(self) -> str:
        """Return the name in scripts."""
        return self.NAME

    def displayName(self) -> str:
        """Return the title in the toolbox."""
        return self.TITLE

    def shortHelpString(self) -> str:
        """Return the help beside the parameters."""
        return self.HELP

    def add(self, parameter: QgsProcessingParameterDefinition, *, advanced: bool = False) -> None:
        """Add a parameter, below the fold where few need it."""
        if advanced:
            parameter.setFlags(parameter.flags() | ADVANCED)
        self.addParameter(parameter)

    def add_number(self, name: str, title: str, **options: Any) -> None:
        """Add a number that may be left empty."""
        self.add(QgsProcessingParameterNumber(name, title, options.pop("type", DOUBLE), optional=True, **options))

    def number_options(self, parameters: dict[str, Any], context: QgsProcessingContext, **names: str) -> list[str]:
        """Return the options of the numbers that were given: `NAME="--option"`."""
        options = []
        for name, option in names.items():
            if parameters.get(name) not in (None, ""):
                definition = self.parameterDefinition(name)
                whole = definition.dataType() == INTEGER
                read = self.parameterAsInt if whole else self.parameterAsDouble
                options.append(f"{option}={read(parameters, name, context)!r}")
        return options

    def call_geood(
        self, arguments: list[str], feedback: QgsProcessingFeedback, *, how_to_resume: str = ""
    ) -> list[str]:
        """Run the program; return the lines that it said.

        Raises:
            QgsProcessingException: the program is not there, failed or was cancelled.
        """
        lines: list[str] = []

        def said(line: str) -> None:
            lines.append(line)
            done = progress_of(line)
            if done is None:
                feedback.pushConsoleInfo(line)
            else:
                feedback.setProgress(done)
                feedback.setProgressText(line)

        try:
            program = find_program(self.program_setting())
            feedback.pushInfo(f"{check_program(program)}: {program}")
            feedback.pushCommandInfo(" ".join([program, *arguments]))
            code = run_program(program, arguments, said=said, cancelled=feedback.isCanceled)
        except ProgramError as error:
            raise QgsProcessingException(str(error)) from None
        if feedback.isCanceled():
            raise QgsProcessingException(f"geood was cancelled. {how_to_resume}".strip())
        if code == SOME_FAILED:
            feedback.reportError(_message(lines))
        elif code:
            raise QgsProcessingException(_message(lines) or f"geood ended with the exit code {code}")
        return lines


def source_of(layer: QgsRasterLayer | None, what: str) -> str:
    """Return the file or address of a raster layer.

    Raises:
        QgsProcessingException: it has none that another program could open.
    """
    if layer is None or not layer.isValid():
        raise QgsProcessingException(f"{what}: not a layer that can be read; choose another, or a file")
    if layer.providerType() != "gdal":
        raise QgsProcessingException(
            f"{what}: the layer {layer.name()} comes from {layer.providerType()}, which only QGIS can read; save it as "
            "a GeoTIFF first (Export > Save As)"
        )
    return layer.source()


def _message(lines: list[str]) -> str:
    """Return the error that the program told last, which may have several lines."""
    starts = [i for i, line in enumerate(lines) if line.startswith("geood: ") or line.startswith("Error: ")]
    return "\n".join(lines[starts[-1] :] if starts else lines[-SHOWN_OF_ERROR:])
