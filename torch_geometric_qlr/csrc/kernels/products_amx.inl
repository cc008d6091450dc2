// The same with the tiles of AMX: 16 rows of 64 bytes each, whose products take one instruction per 16
// rows, 16 outputs and 64 inputs. A panel is a column of tiles as it stands.

#include "panels.inl"

// The shapes of all eight tiles; tiles are there for a thread from the first object on to the last.
struct Products {
  static constexpr int kBlockRows = 32;

  Products() {
    alignas(64) TileShapes shapes;
    std::memset(&shapes, 0, sizeof(shapes));
    shapes.palette = 1;
    for (int t = 0; t < 8; ++t) {
      shapes.bytes[t] = 64;
      shapes.rows[t] = 16;
    }
    _tile_loadconfig(&shapes);
  }
  ~Products() { _tile_release(); }
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

  template <int B>
  void run(const uint8_t* x, int64_t stride, const Panels<int8_t>& panels, int32_t* out) const {
    int64_t p = 0;
    for (; p + 2 <= panels.count(); p += 2) pair(x, stride, panels, p, out);
    if (p < panels.count()) single(x, stride, panels, p, out);
  }

 private:
  struct TileShapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  };

  // Sums are in tiles 0 to 3, rows of x in 4 and 5, the panels in 6 and 7. A stride of zero repeats
  // the starting sums in every row.
  static void pair(const uint8_t* x, int64_t stride, const Panels<int8_t>& panels, int64_t first,
                   int32_t* out) {
    const int32_t* start = panels.start.data() + first * 16;
    _tile_loadd(0, start, 0);
    _tile_loadd(1, start + 16, 0);
    _tile_loadd(2, start, 0);
    _tile_loadd(3, start + 16, 0);
    const int8_t *left = panels.of(first), *right = panels.of(first + 1);
    for (int64_t g = 0; g < panels.groups; g += 16) {
      _tile_loadd(4, x + 4 * g, stride);
      _tile_loadd(6, left + g * 64, 64);
      _tile_loadd(7, right + g * 64, 64);
      _tile_loadd(5, x + 16 * stride + 4 * g, stride);
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(1, 4, 7);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
    const int64_t row = panels.padded * sizeof(int32_t);
    int32_t* to = out + first * 16;
    _tile_stored(0, to, row);
    _tile_stored(1, to + 16, row);
    _tile_stored(2, to + 16 * panels.padded, row);
    _tile_stored(3, to + 16 * panels.padded + 16, row);
  }
  static void single(const uint8_t* x, int64_t stride, const Panels<int8_t>& panels, int64_t panel,
                     int32_t* out) {
    const int32_t* start = panels.start.data() + panel * 16;
    _tile_loadd(0, start, 0);
    _tile_loadd(2, start, 0);
    for (int64_t g = 0; g < panels.groups; g += 16) {
      _tile_loadd(4, x + 4 * g, stride);
      _tile_loadd(6, panels.of(panel) + g * 64, 64);
      _tile_loadd(5, x + 16 * stride + 4 * g, stride);
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(2, 5, 6);
    }
    const int64_t row = panels.padded * sizeof(int32_t);
    _tile_stored(0, out + panel * 16, row);
    _tile_stored(2, out + 16 * panels.padded + panel * 16, row);
  }
};
