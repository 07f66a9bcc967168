// What files say, as a terminal may show it.
#pragma once

#include <string>
#include <string_view>

namespace distil_xlstm {

// Control characters (also those of C1 and the ones that turn the direction of writing) as \n, \t, \x1b, \u202e; what is no UTF-8 as
// U+FFFD. Names, keys and texts of files go through it wherever they are printed: messages do where `main` ends, in the log, in progress.
std::string printable(std::string_view text, bool keep_newlines = false);

// An error's message: several lines stay so, and a very long one (it may quote a file's text) is cut.
std::string printable_message(std::string_view message);

}  // namespace distil_xlstm
