// What happens when a mapped file can no longer be read: it became shorter while it was in use, or its disk failed. The kernel then
// sends SIGBUS at the next access.
#pragma once

#include <cstddef>
#include <filesystem>

namespace distil_xlstm {

// From here on a SIGBUS inside [data, data + size) ends the process with exit code 1 and a message that names `path`. One at any other
// address does what it did before.
void guard_mapping(const std::byte* data, size_t size, const std::filesystem::path& path);

// Before the memory is unmapped; `data` as it was given.
void release_mapping(const std::byte* data) noexcept;

}  // namespace distil_xlstm
