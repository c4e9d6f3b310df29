# Writes OUTPUT with the commit's id, if it changed. Run at each build, so that --version does not lie.
execute_process(COMMAND git describe --always --dirty --abbrev=10 --exclude=*
    WORKING_DIRECTORY ${SOURCE} OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
file(CONFIGURE OUTPUT ${OUTPUT} CONTENT "#define KS_COMMIT \"${commit}\"\n")
