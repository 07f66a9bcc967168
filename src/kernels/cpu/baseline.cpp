#include "kernels/cpu/tables.h"

#define DISTIL_XLSTM_VECTOR_BYTES 16
#define DISTIL_XLSTM_TABLE kBaselineTables
#include "kernels/cpu/all.inc"
