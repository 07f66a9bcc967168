/* C interface of libdistil_xlstm_parquet.so, which holds all that needs Arrow. One thread at a time per file. No exception
 * leaves it: a function that can fail returns NULL or -1 and writes a message that ends with a zero byte. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct DxParquet;

struct DxParquet* dx_parquet_open(const char* path, char* message, size_t message_size);
void dx_parquet_close(struct DxParquet* file);

/* 0: no such column, 1: strings (or bytes), 2: lists or structs, 3: something else */
int dx_parquet_column_kind(struct DxParquet* file, const char* name);
/* Its type in words, "" when there is none; valid until the next call. */
const char* dx_parquet_column_type(struct DxParquet* file, const char* name);

/* Chooses the columns to read and the row to begin with; whole row groups before it are not touched. 0 or -1. */
int dx_parquet_select(struct DxParquet* file, const char* const* names, size_t num_names, int64_t first_row, char* message,
                      size_t message_size);

/* Reads the next rows. Their number, 0 at the end, or -1. */
int64_t dx_parquet_next(struct DxParquet* file, char* message, size_t message_size);

/* Value of a selected column in the rows read last: a string as it is, a list or struct as JSON (a field that is null stays, with
 * null). Valid until the next call; NULL where it is null (an empty message) or cannot be read. */
const char* dx_parquet_value(struct DxParquet* file, size_t column, int64_t row, size_t* size, char* message, size_t message_size);

int64_t dx_parquet_num_rows(struct DxParquet* file);

#ifdef __cplusplus
}
#endif
