/* Version of the plugin ABI.
 *
 * The major number is part of the exported symbol's name (`krasis_plugin_v1`): a plugin of another
 * major version is found, explained and refused. The minor number only tells which fields exist;
 * compatibility is decided by the `size` at the start of every struct, never by comparing it.
 *
 * Rules for every struct of the SDK:
 *  - `uint32_t size` first: sizeof() as its author compiled it. Readers copy min(size, theirs) into
 *    a zeroed struct, so an absent field reads as 0 or NULL, which is always a valid default.
 *  - Fields are only appended, never moved, removed or given a new meaning.
 *  - Fixed-width integers; no enum, bool, long, bit-field, or struct by value that may grow.
 *  - An array of structs travels with the size of one element.
 *  - A NULL function pointer means "not supported" unless its comment says "required".
 *  - Unknown numbers (kinds, ops, types, flags) are skipped, never fatal.
 *
 * Threads, on every function pointer: [main] start and stop, one at a time; [engine] the engine
 * thread; [worker] pool threads, many at once; [any] thread-safe.
 */
#ifndef KRASIS_VERSION_H
#define KRASIS_VERSION_H

#define KS_ABI_MAJOR 1
#define KS_ABI_MINOR 2

#define KS_VERSION "0.1.0"

/* True if the other side's struct S reaches as far as field F. */
#define KS_HAS(S, F) ((S)->size >= offsetof(__typeof__(*(S)), F) + sizeof((S)->F))

#endif
