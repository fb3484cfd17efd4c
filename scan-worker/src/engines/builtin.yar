/*
 * The built-in signatures. Every rule must work on a piece of a file as well as on a whole one, since long files are
 * scanned in overlapping windows: no modules, no filesize, no condition over two patterns, and no pattern longer than
 * `PATTERN_BYTES_MAX` in builtin.rs. Patterns are hexadecimal, so that neither this text nor the program matches them.
 */

// The EICAR test file, 68 bytes, anywhere: https://www.eicar.org/download-anti-malware-testfile/
rule eicar_test_file
{
    meta:
        threat = "EICAR-Test-File"
    strings:
        $eicar = {
            58 35 4F 21 50 25 40 41 50 5B 34 5C 50 5A 58 35
            34 28 50 5E 29 37 43 43 29 37 7D 24
            45 49 43 41 52 2D 53 54 41 4E 44 41 52 44 2D
            41 4E 54 49 56 49 52 55 53 2D
            54 45 53 54 2D 46 49 4C 45 21 24 48 2B 48 2A
        }
    condition:
        $eicar
}

// Lazaret's own harmless marker for trying out large files and deep archives, 47 bytes: the text of builtin.rs,
// `marker()`, which is LAZARET, QUARANTINE, TEST, MARKER and sixteen hexadecimal digits, joined by hyphens.
rule lazaret_test_marker
{
    meta:
        threat = "Lazaret-Test-Marker"
    strings:
        $marker = {
            4C 41 5A 41 52 45 54 2D 51 55 41 52 41 4E 54 49 4E 45 2D
            54 45 53 54 2D 4D 41 52 4B 45 52 2D
            37 66 33 61 39 63 30 35 65 31 62 64 34 38 36 32
        }
    condition:
        $marker
}
