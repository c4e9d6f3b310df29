/* The functions behind the rows of plugin.c. [worker] */
#ifndef MY_KERNELS_ROWS_H
#define MY_KERNELS_ROWS_H

#include <krasis/kernels.h>

void norm_plain(const void *args, uint32_t begin, uint32_t end, void *scratch);

#endif
